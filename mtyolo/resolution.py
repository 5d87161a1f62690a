"""From a model file to a config that needs no other: what it names is found, and what it leaves out is spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtyolo.config.model import ModelConfig, SegmentConfig, TasksConfig, resolve_beside
from mtyolo.config.reading import Document, read_yaml, validate
from mtyolo.errors import ConfigError
from mtyolo.files import model_file
from mtyolo.graph.reading import GraphSpec, read_graph


def resolve(config: str | Path | Mapping[str, Any] | ModelConfig, weights: str | Path | None = None) -> ModelConfig:
    """A model file with its graph's content inside, its weights' path absolute and its tasks spelled out."""
    beside = Path()
    if isinstance(config, ModelConfig):
        model = config
    else:
        document = _document(config)
        beside = document.path.parent
        model = _read_config(document)
    graph_path, spec = _graph(model, beside)
    chosen = str(Path(weights).absolute()) if weights else _weights(model, graph_path.parent, beside)
    tasks = model.tasks or (TasksConfig(segment=SegmentConfig()) if spec.head.block == "Segment" else TasksConfig())
    extractor = model.extractor
    if extractor and extractor.weights not in ("imagenet", "none"):
        found = resolve_beside(extractor.weights, beside / "model.yaml")
        extractor = extractor.model_copy(update={"weights": str((found or Path(extractor.weights)).absolute())})
    detector = model.detector.model_copy(update={"graph": spec.content, "weights": chosen})
    return model.model_copy(update={"detector": detector, "tasks": tasks, "extractor": extractor})


def _document(config: str | Path | Mapping[str, Any]) -> Document:
    if isinstance(config, Mapping):
        return Document(Path("model"), dict(config), {})
    if not isinstance(config, str | Path):
        raise ConfigError(f"model: expected a model file, or the content of one, got {type(config).__name__}")
    return read_yaml(model_file(config))


def _read_config(document: Document) -> ModelConfig:
    if isinstance(document.content, dict) and "backbone" in document.content:
        return ModelConfig.model_validate(
            {"detector": {"graph": str(document.path) if document.lines else document.content}}
        )
    return validate(ModelConfig, document)


def graph_content(config: ModelConfig) -> dict[str, Any]:
    """The layer list of a resolved config."""
    graph = config.detector.graph
    assert isinstance(graph, dict), "resolve() puts the graph's content into the config"
    return graph


def _graph(model: ModelConfig, beside: Path) -> tuple[Path, GraphSpec]:
    if isinstance(model.detector.graph, dict):
        return Path("graph"), read_graph(model.detector.graph)
    path = resolve_beside(model.detector.graph, beside / "model.yaml")
    if path is None:
        raise ConfigError(f"detector.graph: no file {model.detector.graph!r} beside the model file, here, or in mtyolo")
    return path, read_graph(path)


def _weights(model: ModelConfig, *folders: Path) -> str | None:
    name = model.detector.weights
    if name is None:
        return None
    for folder in folders:
        found = resolve_beside(name, folder / "model.yaml")
        if found is not None:
            return str(found.absolute())
    return str(Path(name).absolute())
