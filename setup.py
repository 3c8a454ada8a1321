"""Installs the package `emohubert` from user_dir/ with `pip install .`; requirements.txt holds the versions it is tested with."""

import ast
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

BESIDE = ("tools", "manifests", "config")


class WithoutBenchmarks(build_py):
    """tools/bench_*.py compare with other people's programs and stay in the source tree."""

    def find_package_modules(self, package, package_dir):
        """(package, module, file) of a package's modules."""
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if not entry[1].startswith("bench_")]


def package_version():
    """The value of `__version__` in the package, read without importing it: its dependencies may not be there yet."""
    source = Path(__file__).resolve().parent / "user_dir" / "emohubert" / "__init__.py"
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__":
            return ast.literal_eval(statement.value)
    raise ValueError(f"{source}: no line `__version__ = …`")


setup(
    name="emohubert",
    version=package_version(),
    description="Speech emotion recognition with speaker-conditioned HuBERT, as a fairseq plug-in",
    license="MIT",
    # An installed package holds the programs, corpus scripts and configs as well; in the source tree they stand beside user_dir/.
    package_dir={"": "user_dir", **{f"emohubert.{name}": name for name in BESIDE}},
    packages=[*find_packages("user_dir"), "hydra_plugins", *(f"emohubert.{name}" for name in BESIDE)],
    package_data={"": ["*.yaml", "*.j2", "*.js"], "emohubert": ["weights/*/*"]},
    cmdclass={"build_py": WithoutBenchmarks},
    extras_require={
        "baseline": ["opensmile>=2.5"],  # free for research only
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
        "vad": ["silero-vad>=6"],
    },
    entry_points={"console_scripts": ["emohubert = emohubert.core.programs:main"]},
    python_requires=">=3.11,<3.13",
    install_requires=[
        "fairseq-fixed>=0.12.3.1,<0.13",  # imported as fairseq; 0.12.2 of fairseq itself does not run on Python 3.11
        "hydra-core>=1.3.2,<1.4",
        "Jinja2>=3.1",
        "joblib>=1.3.2",
        "matplotlib>=3.9",
        "npy-append-array>=0.9.16",
        "numpy>=2.2",
        "omegaconf>=2.3,<2.4",
        "pandas>=2.2",
        "PyYAML>=6.0.1",
        "safetensors>=0.4",
        "scikit-learn>=1.5",
        "scipy>=1.13.1",
        "sentencepiece>=0.2",
        "soundfile>=0.13",
        "tensorboard>=2.18",
        "threadpoolctl>=3.1",
        "torch>=2.6",  # the first whose torch.load refuses unknown classes by default
        "torchaudio>=2.6",
        "tqdm>=4.64.1",
    ],
)
