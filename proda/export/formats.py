"""The formats of exported files: how each is written, and how it is opened again in its own runtime."""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from proda.export.program import INPUT, ImageProgram
from proda.utils.errors import UserError

METADATA = "metadata.json"  # name under which a pt2 file has its metadata
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_EXAMPLE = (2, 3, 65, 130)  # of no size that the program should be limited to; its values do not matter
Runner = Callable[[Tensor], Tensor]  # float32 [B, 3, H, W] on the CPU -> the result of the program, on the CPU


class Format(NamedTuple):
    """One format: what runs it, the packages that it needs, and its two functions."""

    runtime: str
    packages: tuple[str, ...]
    write: Callable[[ImageProgram, Path, dict[str, Any]], None]
    open: Callable[[Path, str], Runner]


def write_onnx(program: ImageProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Writes an ONNX file whose batch, height and width are free. Values of ``metadata_props`` are text or JSON."""
    shapes = {INPUT: {0: "batch", 2: "height", 3: "width"}}
    with quiet(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            (torch.zeros(_EXAMPLE),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[program.result],
            dynamic_shapes=shapes,
        )
    assert exported is not None  # it is None for the older exporter alone
    for name, value in metadata.items():
        exported.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    exported.save(str(path), external_data=False)


def open_onnx(path: Path, device: str = "cpu") -> Runner:
    """The file in onnxruntime, with as many threads as torch has. UserError if this build has no such device."""
    import onnxruntime

    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise UserError(f"onnxruntime has no {provider}; pip install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; warnings are about single nodes of the graph
    content = path.read_bytes()  # given a path that is not UTF-8, onnxruntime raises TypeError
    session = onnxruntime.InferenceSession(content, options, providers=[provider])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: image.numpy()})[0])

    return run


def write_pt2(program: ImageProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Writes a file of torch.export whose batch, height and width are free; ``metadata`` is in ``metadata.json``."""
    shapes = {INPUT: {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    with quiet(), torch.no_grad():
        exported = torch.export.export(program, (torch.zeros(_EXAMPLE),), dynamic_shapes=shapes)
        content = io.BytesIO()  # given a path, torch would warn of a name that does not end in .pt2
        torch.export.save(exported, content, extra_files={METADATA: json.dumps(metadata, indent=2)})
    path.write_bytes(content.getbuffer())


def open_pt2(path: Path, device: str = "cpu") -> Runner:
    """The program in the file, loaded by torch."""
    with quiet(), open(path, "rb") as file:
        exported = torch.export.load(file)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            exported = move_to_device_pass(exported, device)
        module = exported.module()

    @torch.no_grad()
    def run(image: Tensor) -> Tensor:
        return module(image.to(device)).cpu()

    return run


FORMATS = {
    "onnx": Format("onnxruntime", ONNX_PACKAGES, write_onnx, open_onnx),
    "pt2": Format("torch.export", (), write_pt2, open_pt2),
}


def require_packages(name: str) -> None:
    """UserError that says how to install what the format of this name needs, if it is missing."""
    for package in FORMATS[name].packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f'--format={name}: needs {package}, which is not installed: pip install -e ".[export]"'
            ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of exporters and compilers, which are about their own code."""
    names = ("torch.onnx", "torch.export", "torch.utils.cpp_extension", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
