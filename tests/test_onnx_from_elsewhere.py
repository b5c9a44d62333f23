"""`hfcompress bench` on an ONNX file that somebody else made, with the intention to read other files of the machine."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper
from test_bench_command import write_file
from test_run import command  # noqa: F401 - a fixture

from hfcompress.core.errors import ExportError, HFCompressError, MeasureError
from hfcompress.measure.onnx_file import describe_onnx, read_onnx
from hfcompress.run.benching import bench_models
from hfcompress.run.reporter import Reporter


def elsewhere(file, **place: str):
    """Let the first tensor of a file say that its numbers lie in another place."""
    model = onnx.load(file, load_external_data=False)
    tensor = model.graph.initializer[0]
    for entry in tensor.external_data:
        entry.value = place.get(entry.key, entry.value)
    file.write_bytes(model.SerializeToString())
    return file


def refused(file, words: str) -> None:
    for look in (read_onnx, describe_onnx, lambda f: bench_models([str(f)], [], ["onnxruntime"], [], 1, Reporter())):
        with pytest.raises(HFCompressError, match=words):
            look(file)


@pytest.mark.parametrize("location", ["../secret.bin", "../../etc/passwd", "/etc/passwd", "a/../../secret.bin", "link"])
def test_weights_outside_the_files_folder_are_not_read(tmp_path, location):
    (tmp_path / "models").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1_000_000))
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "models" / "a").mkdir()
    refused(elsewhere(write_file(tmp_path / "models" / "evil.onnx"), location=location), "outside its own folder")


def test_weights_named_inside_a_node_or_a_branch_are_looked_at_too(tmp_path):
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../x")
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])
    for number, nodes in enumerate(
        ([node], [helper.make_node("If", ["i"], ["o"], then_branch=branch, else_branch=branch)])
    ):
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "l"])
        file = tmp_path / f"{number}.onnx"
        file.write_bytes(helper.make_model(helper.make_graph(nodes, "g", [ids], [])).SerializeToString())
        refused(file, "outside its own folder")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"location": "gone.bin"}, "missing or cut short"),
        ({"length": "99999999"}, "missing or cut short"),
        ({"length": "9" * 30}, "no number"),
        ({"offset": "-5"}, "no number"),
        ({"offset": "x"}, "no number"),
        ({"location": "a\0b"}, "outside its own folder"),
    ],
)
def test_weights_that_are_not_there_are_told(tmp_path, place, words):
    file = elsewhere(write_file(tmp_path / "m.onnx"), **place)
    with pytest.raises(ExportError, match=words):
        read_onnx(file)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "zeros", "text", "sizes"])
def test_a_file_that_is_none_is_told(tmp_path, damage, command):  # noqa: F811
    file = write_file(tmp_path / "m.onnx")
    content = file.read_bytes()
    model = onnx.load(file, load_external_data=False)
    model.graph.initializer[0].dims[0] = 2**40
    made = {
        "empty": b"", "cut": content[: len(content) // 2], "noise": bytes(range(256)) * 20, "zeros": bytes(5000),
        "text": b"no model", "sizes": model.SerializeToString(),
    }  # fmt: skip
    file.write_bytes(made[damage])
    with pytest.raises((MeasureError, ExportError)):
        read_onnx(file)
        describe_onnx(file)
    status, _, errors = command("bench", file, "--engine", "onnxruntime", "--rounds", "1")
    assert status == 2 and errors.startswith("error: ") and "Traceback" not in errors
