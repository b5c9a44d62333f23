"""Which kernels an engine chose for the products of an exported file, on this machine."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from ..core.scratch import scratch_folder
from .opening import compile_openvino, session_options

_OUTSIDE = "session.optimized_model_external_initializers_file_name"
_PRODUCTS = re.compile(r"MatMul|Gemm|FullyConnected|Conv(olution)?$|^QLinearConv|Attention")


def kernels(file: Path) -> str:
    """Return such as 'kernels MatMulIntegerToFloat (36), Gemm (1)'; empty when there is no product."""
    counted = _openvino(file) if file.suffix == ".xml" else _onnxruntime(file)
    names = [f"{name} ({count})" for name, count in counted.most_common()]
    return f"kernels {', '.join(names)}" if names else ""


def _onnxruntime(file: Path) -> Counter[str]:
    """Count the operators that are left when a session has folded and fused all it can."""
    import onnx
    import onnxruntime

    with scratch_folder() as folder:
        options = session_options(1)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.add_session_config_entry(_OUTSIDE, "weights")  # unpacked they may be over 2 GB, which no file holds
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node if _PRODUCTS.search(node.op_type))


def _openvino(file: Path) -> Counter[str]:
    """Count the layers of the compiled model by the type they compute in."""
    found: Counter[str] = Counter()
    for node in compile_openvino(file, 1).get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, how = (str(info[key].value) if key in info else "" for key in ("layerType", "primitiveType"))
        if _PRODUCTS.search(kind):
            found[f"{kind} {how.rpartition('_')[2].lower()}".rstrip()] += 1
    return found
