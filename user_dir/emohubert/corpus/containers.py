"""Whether a recording is all there: what its container says of its length, against what is in the file.

libsndfile shortens a cut file without a word, hears only the first of two streams, and guesses the length of an MP3 without a tag.
"""

import re
import struct
import zlib

import soundfile

from ..core.errors import InputError

RATES = (1_000, 768_000)
"""Sample rates that a header may state; beyond them resampling would take any amount of memory."""
_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s of MPEG audio layer III by index
_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_DENSE = 100  # samples a byte: more are believed only if the last one is there
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_STATED = re.compile(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_CONTRADICTED = re.compile("does not match value from 'ds64'|not equal to frame count")
_FOREIGN = re.compile(r"Unknown chunk marker.* at position (\d+)")
_UNKNOWN = 0x7FFF_0000  # bytes of audio: what streams write for "unknown" is more
_HEADER = 2000  # bytes: more are no header alone
_PADDING = 5  # MP3 frames at most of an encoder's delay and padding, and its tag


def check(open_stream, size, found, path):
    """Raise InputError unless a recording, an open SoundFile `found`, is all in its `size` bytes, which `open_stream()` reads."""
    if not RATES[0] <= found.samplerate <= RATES[1]:
        raise InputError(f"{path}: its header says {found.samplerate} Hz; {RATES[0]} to {RATES[1]} are believed: correct the header")
    if found.frames >= 1 << 62:  # a FLAC whose encoder did not know
        raise InputError(f"{path}: its header leaves the length open; encode it again")
    if found.format == "RAW":  # what libsndfile takes any .au file for that it does not know
        raise InputError(f"{path}: has no header that tells what it is; restore it, or convert it to WAV or FLAC")
    if found.frames > _DENSE * size and not _has_end(found):
        raise InputError(f"{path}: truncated, its header says {found.frames} samples and the last is not there; restore it")
    if kind := _KINDS.get(found.format):
        with open_stream() as stream:
            if wrong := kind(stream, size, found):
                raise InputError(f"{path}: {wrong}")


def _has_end(found):
    """Whether the last sample is there, decoded; else a header could demand any amount of memory."""
    try:
        found.seek(found.frames - 1)
        there = len(found.read(1))
        found.seek(0)
        return there == 1
    except soundfile.LibsndfileError:
        return False


def _cut(there, wanted, kind):
    return f"truncated {kind}, {max(there, 0)} of {wanted} bytes of audio are there; restore it" if there < wanted else None


def _chunks(stream, size, found):
    """What libsndfile's log says of chunks: one is longer than the file, states another number of samples, or is none."""
    log = found.extra_info
    if (stated := _STATED.search(log)) and int(stated[1]) < _UNKNOWN:
        return _cut(int(stated[2]), int(stated[1]), found.format)
    if _CONTRADICTED.search(log):
        return f"its header says another number of samples than its audio, {found.frames}; restore it"
    if not found.frames and "should be" in log:
        return f"truncated {found.format}, its audio is not there; restore it"
    if foreign := _FOREIGN.search(log):
        stream.seek(max(int(foreign[1]) - 1, 0))  # or a chunk, where the one before lacks its byte of padding
        name = stream.read(4)
        foreign = not name.isascii() or not name.decode().isprintable()
    if foreign or not found.frames and size > _HEADER:
        return f"its header says {found.frames} samples, and more follow: whoever wrote it was interrupted; repair the header"
    return None


def _nist(stream, size, found):
    header = stream.read(1024).decode("latin-1")
    fields = {name: int(value) for name, value in re.findall(r"(sample_count|sample_n_bytes|channel_count) -i (\d+)", header)}
    start = header[8:16].strip()
    if len(fields) < 3 or not start.isdecimal() or "coding -s" in header and "pcm" not in header:
        return None
    start = int(start)
    return _cut(size - start, fields["sample_count"] * fields["sample_n_bytes"] * fields["channel_count"], "SPHERE")


def _ogg(stream, size, found):
    """Page by page: none is missing or damaged, the last one of the stream ends it, and no other stream begins after it."""
    ended, last = False, {}  # the latter: stream → number of its last page
    while len(head := stream.read(27)) == 27 and head[:4] == b"OggS":
        if ended:
            return "several streams one after another, of which only the first would be heard; decode it to WAV or FLAC"
        serial, number, checksum = struct.unpack("<14xIII", head[:26])
        lengths = stream.read(head[26])
        page = head[:22] + bytes(4) + head[26:] + lengths + stream.read(sum(lengths))
        if len(page) < 27 + head[26] + sum(lengths):
            break
        if last.get(serial, number - 1) != number - 1 or _ogg_checksum(page) != checksum:
            return f"damaged at byte {stream.tell() - len(page)} or before; restore it"
        ended, last[serial] = bool(head[5] & 4), number
    return None if ended else "truncated, its stream has no end; restore it"


def _ogg_checksum(page):
    """The checksum of RFC 3533, which is zlib's with the bits the other way round, and without its inversions."""
    return int(f"{zlib.crc32(page.translate(_MIRRORED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF:032b}"[::-1], 2)


def _mp3(stream, size, found):
    """Frame by frame: as many samples as libsndfile expects."""
    head = stream.read(10)
    tag = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)) + 10 if head[:3] == b"ID3" else 0
    stream.seek(tag)
    data, at, samples, per_frame = stream.read(), 0, 0, 0
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
        index, rate, padded = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
        if data[at + 1] < 0xE0 or version == 1 or layer != 1 or index in (0, 15) or rate == 3:
            at += 1
            continue
        first = version == 3
        length = (144 if first else 72) * (_MPEG1 if first else _MPEG2)[index] * 1000 // _MP3_RATES[version][rate] + padded
        if at + length > len(data):
            break
        per_frame = 1152 if first else 576
        samples, at = samples + per_frame, at + length
    tagged = b"Xing" in data[:300] or b"Info" in data[:300]
    if not per_frame or (0 if tagged else -per_frame) <= samples - found.frames <= _PADDING * per_frame:
        return None
    what = f"{found.frames} samples by its header, {samples} by its frames"
    return f"{what}: truncated, joined, or of variable rate without a tag; decode it to WAV or FLAC, or restore it"


_KINDS = {"NIST": _nist, "OGG": _ogg, "MP3": _mp3} | dict.fromkeys(("WAV", "WAVEX", "RF64", "AIFF", "CAF", "W64", "AU"), _chunks)
