"""An ONNX file as a side, run by onnxruntime on the CPU: outputs and named values, in eval mode, in float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.conversion.files import read_regular
from parity.errors import ParityError, needs_extra
from parity.sides.arguments import named_arrays
from parity.sides.base import OUTPUT, AnsweredByRunning, Arrays, Loss, Run, Train
from parity.sides.optimizers import Optimizer

LARGEST = 2**31  # bytes; Protocol Buffers hold no more
CHECKS = ("forward", "activations", "weights")


def is_onnx(network: Any) -> bool:
    """Whether this is the path of an ONNX file, by its name."""
    return isinstance(network, str | Path) and str(network).endswith(".onnx")


class OnnxSide(AnsweredByRunning):
    """A file with one input and one output.

    Its initializers are its parameters, and its values inside are activations, as far as they have the names of the
    reference's: the export of resnet_flax gives them those. Outputs are what onnxruntime computes from the file as it
    is; activations come from a copy that returns them too, so that its graph is optimised less.
    """

    framework, precision, device = "ONNX", "float32", "cpu"
    takes_tokens, has_train_mode = False, False
    trained: Sequence[str] = ()
    constants: Sequence[str] = ()

    def __init__(self, path: str | Path, precision: str):
        if precision != "float32":
            raise ParityError(f"{path} is compared in float32, in which onnxruntime computes: not in {precision}")
        with needs_extra("onnx", f"running {path}"):
            import onnx
            import onnxruntime
        self.path = Path(path)
        try:
            content = read_regular(path, LARGEST)
            self._model = onnx.load_model_from_string(content)
            self._session = self._opened(content)
        except OSError as error:
            raise ParityError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # onnx and onnxruntime have no common class of errors
            reason = " ".join(str(error).split())
            raise ParityError(f"{path} cannot be run by onnxruntime {onnxruntime.__version__}: {reason}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
            found = f"{len(inputs)} inputs ({', '.join(one.type for one in inputs)}) and {len(outputs)} outputs"
            raise ParityError(f"{path} has {found}; what can be compared has one of float32 and one")
        self.channels = -1 if self._session.get_modelmeta().custom_metadata_map.get("layout") == "NHWC" else 1
        self._initializers = {one.name: onnx.numpy_helper.to_array(one) for one in self._model.graph.initializer}

    def _opened(self, content: bytes) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The only height and width that the file takes, if it takes images and but one size of them."""
        shape = list(self._session.get_inputs()[0].shape)
        if len(shape) != 4:
            return None
        del shape[self.channels], shape[0]
        return (shape[0], shape[1]) if all(isinstance(size, int) for size in shape) else None

    @property
    def parameters(self) -> list[str]:
        statistics = (".running_mean", ".running_var")
        return [name for name in self.shapes() if not name.endswith(statistics)]

    def at(self, precision: str) -> "OnnxSide":
        return OnnxSide(self.path, precision)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self._initializers.items() if array.dtype.kind == "f"}

    def state(self) -> Arrays:
        return {name: np.array(self._initializers[name], np.float64) for name in self.shapes()}

    def load(self, state: Arrays) -> None:
        raise ParityError(f"{self.path} is a file: nothing can be put into it")

    def array(self, array: Any) -> Any:
        return np.ascontiguousarray(array, np.float32)

    def mode_arguments(self, inputs: Any) -> dict[str, bool]:
        return {}

    def run(
        self,
        inputs: Any,
        targets: Any = None,
        loss: Loss | None = None,
        *,
        train: bool,
        activation_gradients: bool = False,
        record: bool = True,
    ) -> Run:
        """Outputs and named values; nothing is differentiated.

        Raises:
            ParityError: for train mode, a loss, more than one input, or inputs that the file does not take.
        """
        if train or loss is not None:
            raise ParityError(f"{self.path} computes in eval mode, and has no gradients")
        arrays = list(named_arrays(inputs).values())
        if len(arrays) != 1:
            raise ParityError(f"{self.path} takes one input, not {len(arrays)}")
        (taken,) = self._session.get_inputs()
        given = arrays[0].shape
        if len(given) != len(taken.shape) or any(
            isinstance(size, int) and size != own for size, own in zip(taken.shape, given, strict=True)
        ):
            raise ParityError(f"{self.path} takes inputs of shape {tuple(taken.shape)}, not {given}")
        feed = {taken.name: self.array(arrays[0])}
        try:
            (output,) = self._session.run(None, feed)
            activations = self._values(feed) if record else {}
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ParityError(f"{self.path} does not run on inputs {arrays[0].shape}: {reason}") from error
        return Run({OUTPUT: output.astype(np.float64)}, activations, {})

    def _values(self, feed: dict[str, np.ndarray]) -> Arrays:
        """Every value inside the graph, by its name, in the order of computation."""
        import onnx

        (output,) = self._session.get_outputs()
        inside = [name for node in self._model.graph.node for name in node.output if name and name != output.name]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
        values = self._opened(model.SerializeToString()).run(inside, feed)
        return {
            name: value.astype(np.float64)
            for name, value in zip(inside, values, strict=True)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        }

    def trainer(self, optimizer: Optimizer) -> Any:
        raise ParityError(f"{self.path} is a file: nothing can be trained")

    def train_with(self, train: Train, batches: Sequence[tuple[Any, Any]], optimizer: Optimizer) -> list[float]:
        raise ParityError(f"{self.path} is a file: nothing can be trained")
