"""Exports a trained run for other programs: a transformers or peft folder, a torch.export program, ONNX.

Each export is written under a temporary name and loaded again as its users would load it. Its logits are compared with
those of the run's own model in float32. If they differ by more than rounding, the export is removed and the command
fails.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import UserError
from ...kernels.install import install_hint
from ...kernels.names import check_name
from ..model.adapters import adapter_config, merged, write_adapters
from ..model.encoder import quiet_transformers
from ..model.whole import WholeModel
from ..runs.files import published, sweep, write_bytes, write_json
from ..runs.folder import RunFolder, environment
from ..runs.saved_model import HEADER_KEY
from ..terminal.console import quieted
from .logits import Logits, LogitsModel, difference, probes
from .predict import Predictor, load_predictor

FORMATS = ("transformers", "safetensors", "peft", "torch-export", "onnx")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ENCODER_FILE, HEAD_FILE, PROGRAM_FILE, GRAPH_FILE = "model.safetensors", "head.safetensors", "model.pt2", "model.onnx"
HEAD_FORMAT = "isotrain-head-1"
EXPORT_RECORD = "export.json"

# Relative L2 of float32 logits. Another order of rounding gave 1e-7 to 1e-6 for ALBERT base and large. A wrong mask,
# token type or weight gives more than 1e-3.
TOLERANCE = 1e-5


class ExportError(RuntimeError):
    """The export doesn't compute what the run's model does. It was removed."""


@dataclass(frozen=True)
class Exported:
    """A finished export. `label` names the encoder and `judge` the program that loaded the export again.

    The differences are those of its float32 logits. `trained_in` is the run's dtype.
    """

    folder: Path
    label: str
    trained_in: str
    judge: str
    max_abs: float
    relative_l2: float


def export_run(
    run: RunFolder,
    form: str,
    target: Path,
    backend: str | None = None,
    checkpoint: str | None = None,
    model_name: str | None = None,
) -> Exported:
    """Exports the run into a new folder and checks the export. If that fails, nothing is left at `target`.

    Args:
        form: One of FORMATS.
        target: The folder to create.
        backend: As in `load_predictor`, like `checkpoint` and `model_name`.

    Raises:
        UserError: As from `load_predictor`; also an unknown form, a missing package, or a target that exists.
        ExportError: The logits differ by more than TOLERANCE.
    """
    check_name("--format", form, FORMATS)
    missing = [name for name in ("onnx", "onnxscript") if form == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}, not installed: `{install_hint('onnx')}`")
    if target.exists():
        raise UserError(f"{str(target)!r} exists already; choose another place by --out, or remove it first")
    if not target.absolute().parent.is_dir():
        raise UserError(f"there is no folder {str(target.absolute().parent)!r} to put the export in; make it first")
    predictor = load_predictor(run, backend, checkpoint, model_name)
    if form == "peft" and not predictor.config.lora.rank:
        raise UserError(
            f"--format peft is for adapters (lora.rank), and run {str(run.path)!r} has none; allowed for it are "
            f"{', '.join(name for name in FORMATS if name != form)}"
        )
    write, load = _WAYS[form]
    sweep(target.parent)
    with published(target) as temporary:
        with _quiet(), torch.no_grad():
            trained = trained_model(predictor)
            write(trained, predictor, temporary)
            judge, logits = load(trained, predictor, temporary)
            max_abs, relative = difference(trained, logits, predictor.config.max_length)
        if not relative <= TOLERANCE:
            raise ExportError(
                f"the {form} export's logits, by {judge}, differ from the run's by {relative:.1e} in relative L2 "
                f"(max abs {max_abs:.1e}), and {TOLERANCE:.0e} is allowed; nothing was kept"
            )
        _write_companions(predictor, run, temporary)
        result = Exported(target, predictor.label, predictor.config.dtype, judge, max_abs, relative)
        write_json(temporary / EXPORT_RECORD, _record(predictor, run, form, result))
    return result


def trained_model(predictor: Predictor) -> LogitsModel:
    """The run's encoder and head in float32 on the host, with adapters merged.

    A frozen encoder is loaded from its own files, because the run computed features with weights rounded to its dtype.
    """
    model: Any = predictor.model
    if isinstance(model, WholeModel):
        encoder, head = predictor.backend.on_host(model.encoder), model.head
    else:
        encoder, head = predictor.loaded.module(), model
    whole = LogitsModel(merged(encoder), predictor.backend.on_host(head), predictor.task.apply_head)
    return whole.to("cpu", torch.float32).eval().requires_grad_(False)


# What transformers calls these tasks.
_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    **{name: name for name in ("multi_label_classification", "regression")},
}


def _write_safetensors(trained: LogitsModel, predictor: Predictor, folder: Path) -> None:
    _described_encoder(trained, predictor).save_pretrained(folder)
    _write_head(trained, predictor, folder)


def _described_encoder(trained: LogitsModel, predictor: Predictor) -> Any:
    """The encoder, with the task's outputs in its configuration."""
    encoder: Any = trained.encoder
    names = predictor.task.output_names(predictor.recalled, predictor.num_outputs)
    encoder.config.problem_type = _PROBLEM_TYPES.get(predictor.task.name)
    encoder.config.update({"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}})
    return encoder


def _write_transformers(trained: LogitsModel, predictor: Predictor, folder: Path) -> None:
    from ..model.auto_classes import with_transformers_head

    head: Any = trained.head
    with_transformers_head(_described_encoder(trained, predictor), head).save_pretrained(folder)


def _load_transformers(trained: LogitsModel, predictor: Predictor, folder: Path) -> tuple[str, Logits]:
    import transformers

    from ..model.auto_classes import register_models

    del trained
    register_models()
    by_name = "AutoModelForSequenceClassification" if predictor.task.on_features else "AutoModelForQuestionAnswering"
    auto = getattr(transformers, by_name)
    model = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True).eval()

    def logits(*batch: torch.Tensor) -> torch.Tensor:
        output = model(**dict(zip(INPUTS, batch, strict=True)))
        if predictor.task.on_features:
            return output.logits
        return torch.stack((output.start_logits, output.end_logits), -1)

    return f"transformers {transformers.__version__} ({by_name})", logits


def _write_head(trained: LogitsModel, predictor: Predictor, folder: Path) -> None:
    from safetensors.torch import save

    reads = "last_hidden_state[:, 0]" if predictor.task.on_features else "last_hidden_state"
    header = {"format": HEAD_FORMAT, "reads": reads, "layers": str(trained.head)}
    tensors = {name: tensor.contiguous() for name, tensor in trained.head.state_dict().items()}
    write_bytes(folder / HEAD_FILE, save(tensors, metadata={HEADER_KEY: json.dumps(header)}))


def _load_safetensors(trained: LogitsModel, predictor: Predictor, folder: Path) -> tuple[str, Logits]:
    import transformers

    del predictor
    encoder = transformers.AutoModel.from_pretrained(
        folder, add_pooling_layer=False, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    return f"transformers {transformers.__version__} (AutoModel)", _with_head(trained, encoder.eval(), folder)


def _write_peft(trained: LogitsModel, predictor: Predictor, folder: Path) -> None:
    model: Any = predictor.model
    config = adapter_config(predictor.loaded.module(), predictor.config.lora)
    config.base_model_name_or_path = predictor.loaded.name
    config.inference_mode = True
    write_adapters(predictor.backend.on_host(model.encoder), config, folder)
    _write_head(trained, predictor, folder)


def _load_peft(trained: LogitsModel, predictor: Predictor, folder: Path) -> tuple[str, Logits]:
    import peft

    base = copy.deepcopy(predictor.loaded.module()).to(torch.float32)
    encoder = peft.PeftModel.from_pretrained(base, folder).eval()
    return f"peft {peft.__version__} (PeftModel)", _with_head(trained, encoder, folder)


def _with_head(trained: LogitsModel, encoder: nn.Module, folder: Path) -> LogitsModel:
    """`encoder` with the head from `folder`."""
    from safetensors.torch import load_file

    head = copy.deepcopy(trained.head)
    head.load_state_dict(load_file(folder / HEAD_FILE), strict=True)
    return LogitsModel(encoder, head, trained._apply_head)


def _example(trained: LogitsModel, predictor: Predictor) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
    """A batch for tracing, and which of its dimensions are dynamic."""
    config: Any = trained.encoder.config
    _, batch, *_ = probes(config, predictor.config.max_length)
    free = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("length", min=1, max=config.max_position_embeddings),
    }
    return batch, (free, free, free)


def _write_program(trained: LogitsModel, predictor: Predictor, folder: Path) -> None:
    batch, free = _example(trained, predictor)
    torch.export.save(torch.export.export(trained, batch, dynamic_shapes=free), folder / PROGRAM_FILE)


def _load_program(trained: LogitsModel, predictor: Predictor, folder: Path) -> tuple[str, Logits]:
    del trained, predictor
    return f"torch.export {torch.__version__}", torch.export.load(folder / PROGRAM_FILE).module()


def _write_graph(trained: LogitsModel, predictor: Predictor, folder: Path) -> None:
    batch, free = _example(trained, predictor)
    torch.onnx.export(
        trained,
        batch,
        folder / GRAPH_FILE,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_shapes=free,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _load_graph(trained: LogitsModel, predictor: Predictor, folder: Path) -> tuple[str, Logits]:
    """Loads the graph in ONNX Runtime or, if that isn't installed, in onnx's own reference evaluator (slow)."""
    del trained, predictor
    run: Callable[..., Any]
    if find_spec("onnxruntime") is not None:
        # Its Linux builds send usage statistics unless this is set before the import.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        run = onnxruntime.InferenceSession(folder / GRAPH_FILE, options, providers=["CPUExecutionProvider"]).run
        judge = f"ONNX Runtime {onnxruntime.__version__}"
    else:
        import onnx
        from onnx.reference import ReferenceEvaluator

        run = ReferenceEvaluator(onnx.load(folder / GRAPH_FILE)).run
        judge = f"onnx {onnx.__version__} (reference evaluator)"

    def logits(*batch: torch.Tensor) -> torch.Tensor:
        (result,) = run(None, {name: tensor.numpy() for name, tensor in zip(INPUTS, batch, strict=True)})
        return torch.from_numpy(result)

    return judge, logits


_WAYS: dict[str, tuple[Callable[[LogitsModel, Predictor, Path], None], Callable[..., tuple[str, Logits]]]] = {
    "transformers": (_write_transformers, _load_transformers),
    "safetensors": (_write_safetensors, _load_safetensors),
    "peft": (_write_peft, _load_peft),
    "torch-export": (_write_program, _load_program),
    "onnx": (_write_graph, _load_graph),
}


def _write_companions(predictor: Predictor, run: RunFolder, folder: Path) -> None:
    """Writes the tokenizer and the label map in the formats of transformers and of isotrain."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    definition = Tokenizer.from_file(str(run.tokenizer / "tokenizer.json"))
    known = {
        "pad_token": definition.id_to_token(predictor.tokenizer.pad_id),
        **{
            role: next((token for token in tokens if definition.token_to_id(token) is not None), None)
            for role, tokens in (
                ("cls_token", ("[CLS]", "<s>")),
                ("sep_token", ("[SEP]", "</s>")),
                ("unk_token", ("[UNK]", "<unk>")),
                ("mask_token", ("[MASK]", "<mask>")),
            )
        },
    }
    PreTrainedTokenizerFast(
        tokenizer_object=definition,
        model_max_length=predictor.config.max_length,
        model_input_names=list(INPUTS),
        **{role: token for role, token in known.items() if token is not None},
    ).save_pretrained(folder)
    for kept in (run.labels, run.inputs, run.responses):
        if kept.is_file():
            write_bytes(folder / kept.name, kept.read_bytes())


def _record(predictor: Predictor, run: RunFolder, form: str, result: Exported) -> dict[str, Any]:
    return {
        "format": form,
        "run": run.name,
        "model": result.label,
        "trained_in": result.trained_in,
        "max_length": predictor.config.max_length,
        "inputs": list(INPUTS),
        "checked": {
            "by": result.judge,
            "max_abs": result.max_abs,
            "relative_l2": result.relative_l2,
            "allowed_relative_l2": TOLERANCE,
            "dtype": "float32",
        },
        "environment": environment(),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' advice to their own developers off the terminal. Problems that matter are checked here."""
    with quieted("torch.onnx"), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
