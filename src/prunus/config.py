"""The recipe: one TOML file that describes a whole run. Every field has its unit and its help in one place, here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from prunus.config_prune import PruneConfig, Section
from prunus.errors import RecipeError
from prunus.recipe_text import override, problem, read_toml


class ModelConfig(Section):
    """Which network."""

    source: str = Field(description="torchvision:NAME, timm:NAME, cifar:resnet20 ... resnet56, or path/to/file.py:function")
    weights: str | None = Field(
        None,
        description="file of weights, .safetensors or .pt (read without pickle); package:DISTRIBUTION/PATH, a file of an "
        "installed package; pretrained or pretrained:TAG, torchvision's or timm's own, and hf:ORG/REPO/FILE (both are "
        "downloaded); none: random",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the network's constructor")


class DataConfig(Section):
    """Which images."""

    source: str = Field(
        "digits",
        description="digits, folder:PATH (or a .zip), wds:PATTERN (tar shards), datasets:PATTERN (Parquet, Arrow or JSON files), "
        "cifar10:PATH, fashion-mnist:PATH, mnist:PATH, elpv, fake:CxHxWxCLASSES, or path/to/file.py:function",
    )
    download: bool = Field(False, description="fetch the files of cifar10 where they are missing")
    check_images: bool = Field(
        True, description="decode every chosen image of a folder first and leave out the damaged ones; off: they stop the run"
    )
    image_size: int | None = Field(None, ge=1, description="pixels, height and width of the network's input; none: as stored")
    batch_size: int = Field(64, ge=1, description="images per training step")
    eval_batch_size: int = Field(256, ge=1, description="images per evaluation step")
    workers: int = Field(0, ge=0, description="decoding processes")
    worker_timeout: float = Field(
        600.0,
        ge=0,
        exclude=True,  # it changes no result, so a run may go on with another
        description="seconds that decoding processes may take for a batch before the run stops; 0: for ever",
    )
    augment: Literal["none", "shift", "crop-flip", "resized-crop-flip"] = Field(
        "none", description="shift: +-1 pixel; crop-flip: 4 pixels of padding (CIFAR); resized-crop-flip: ImageNet's"
    )
    min_area: float = Field(0.08, gt=0, le=1, description="resized-crop-flip: smallest share of an image's area in a crop")
    colour: float = Field(0.0, ge=0, lt=1, description="strength of random brightness, contrast and saturation; 0: none")
    balance: bool = Field(False, description="draw every class equally often in training, however many images it has")
    mean: tuple[float, ...] | None = Field(
        None, description="per-channel mean of the input, 0..1 pixels; none: the trained network's own, else the source's"
    )
    std: tuple[float, ...] | None = Field(None, description="per-channel standard deviation; none: likewise")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the training images held out where no split is given; the same for every seed"
    )
    shuffle_buffer: int | None = Field(
        None,
        ge=1,
        description="wds: and datasets: images among which the next one of training is drawn, as the files are gone through in a "
        "random order; none: 10,000",
    )
    train_limit: int | None = Field(
        None, ge=1, description="use only so many training images, as evenly over the classes as can be; the same for every seed"
    )


class OptimizerConfig(Section):
    """One training phase."""

    epochs: int = Field(10, ge=0, description="passes over the training images")
    steps: int | None = Field(None, ge=1, description="training batches, instead of epochs")
    lr: float = Field(0.05, gt=0, description="peak learning rate")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd (with Nesterov momentum) or adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0, description="on weights only: never on biases and norm parameters")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up in front of the cosine")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross entropy")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; none: no clipping")
    freeze_batch_norm: bool = Field(
        False, description="batch norm keeps its statistics and parameters: steadier where images or batches are few"
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate after the warm-up")
    first_layer_lr: float = Field(
        1.0, gt=0, le=1, description="learning rate of the first layer, as a share of the last's; geometric in between"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay, by step, of a moving average of the weights, which is what is kept; 0: none"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup: images are mixed in pairs by Beta(alpha, alpha); 0: none")
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without a better accuracy on the validation images; none: never"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="weights of the last epoch, or of the one best on the validation images (results are marked as such)"
    )
    sparse_gradients: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of every convolution's activation gradients that lie below a threshold and become zero or the "
        "threshold at random; 0: none. Saves operations on sparse hardware, no time here",
    )


class TransferConfig(OptimizerConfig):
    """A new head on a trained network, trained while everything below it is frozen (its batch norm, too)."""

    epochs: int = Field(10, ge=0, description="epochs of training the head alone; `train` then trains the whole network")
    head: Literal["linear", "mlp"] = Field("linear", description="linear: one layer; mlp: three, with dropout in front of two")
    hidden: int = Field(4096, ge=1, description="mlp: width of its two hidden layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="mlp: share of the features that is dropped")
    augment: bool = Field(
        False, description="train on augmented images as data.augment says; off: on features computed once, much faster"
    )


class SparsityConfig(OptimizerConfig):
    """Training that makes channels removable, and then decides which go, in place of a criterion and an allocator."""

    epochs: int = Field(20, ge=0, description="epochs of this training, in every round")
    method: str = Field(description="a name that `prunus methods` lists")
    preset: str = Field("paper", description="paper: the published values, for long schedules; short: for small machines")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method, over the preset's")
    fold_batches: int = Field(
        8,
        ge=0,
        description="training batches on which the mean of every channel that goes is measured, to be folded into what reads it "
        "(exact for one that emits a constant); 0: it is dropped",
    )

    @model_validator(mode="after")
    def _check_training(self) -> SparsityConfig:
        if self.epochs == 0 and self.steps is None:
            raise ValueError("a sparsity method decides by training: set epochs or steps above zero, or leave the section out")
        if self.ema or self.keep == "best":
            raise ValueError("averaged weights (ema) or those of the best epoch aren't what the method decides by")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"epochs": 3, "lr": 0.01, "warmup_epochs": 0.3, "first_layer_lr": 0.5, "ema": 0.98},
    "standard": {"epochs": 15, "lr": 0.02, "warmup_epochs": 1.0, "first_layer_lr": 0.5, "ema": 0.995},
    "long": {"epochs": 60, "lr": 0.05, "warmup_epochs": 3.0, "ema": 0.999, "label_smoothing": 0.1},
}
"""Fine-tuning: a few epochs to see how far it comes, as many as pruning as a rule needs, and as from the start. All with a
cosine, and weight decay on weights only."""


LADDER = ("recalibrate", "reconstruct", "distill")
"""The rungs of a recipe that names none."""
DISTILLATION: dict[str, Any] = {"distill": 0.9, "temperature": 4.0, "distill_features": 0.1}
"""What the rung ``distill`` compares, where nothing else is said."""


class RecoverConfig(OptimizerConfig):
    """Between surgery and the final accuracy: the ladder of recovery, cheap to dear."""

    preset: Literal["quick", "standard", "long"] | None = Field(
        None, description="defaults of fine-tuning for 3, 15 or 60 epochs with an averaged copy; what else is given goes first"
    )

    rungs: tuple[Literal["compensate", "reconstruct", "recalibrate", "fine-tune", "distill"], ...] = Field(
        ("recalibrate", "fine-tune"),
        description="in this order after every round. compensate: removed channels' means go into the biases; reconstruct: "
        "layers are refitted by least squares to the unpruned network's; recalibrate: batch-norm statistics anew; fine-tune; "
        "distill: fine-tuning with the unpruned network as teacher",
    )
    epochs: int = Field(10, ge=0, description="epochs of fine-tuning after every round")
    lr: float = Field(0.02, gt=0, description="peak learning rate of fine-tuning")
    recalibrate_batches: int = Field(32, ge=0, description="training batches that re-estimate BN statistics; 0: none")
    final_epochs: int = Field(0, ge=0, description="more epochs after the last round")
    distill: float = Field(0.0, ge=0, le=1, description="share of the loss that compares with the unpruned network's answers")
    temperature: float = Field(2.0, gt=0, description="of those answers: higher tells more of the improbable classes")
    distill_features: float = Field(
        0.0, ge=0, description="weight of the distance between feature maps, of the channels that are left, with the teacher's"
    )
    sample_batches: int = Field(32, ge=1, description="training batches that compensation and reconstruction measure on")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """A preset's values, where nothing else is given."""
        if not isinstance(given, dict):
            return given
        tree = cast("dict[str, Any]", given)
        rungs: Any = tree.get("rungs")
        taught = DISTILLATION if isinstance(rungs, list | tuple) and "distill" in rungs else {}
        return {**taught, **PRESETS.get(str(tree.get("preset")), {}), **tree}

    @model_validator(mode="after")
    def _check_rungs(self) -> RecoverConfig:
        twice = sorted({rung for rung in self.rungs if self.rungs.count(rung) > 1})
        if twice:
            raise ValueError(f"rungs: {twice[0]} is listed twice")
        if "distill" in self.rungs and not (self.distill or self.distill_features):
            raise ValueError(
                "the rung distill compares nothing with distill = 0 and distill_features = 0: raise one, or leave it out"
            )
        return self


class FunctionsConfig(Section):
    """Functions of your own, as path/to/file.py:function; none: classification."""

    loss: str | None = Field(None, description="loss(output, batch), a mean over the batch; none: cross entropy")
    metric: str | None = Field(None, description="metric(output, batch), one value per example, shown as accuracy; none: top-1")
    forward: str | None = Field(None, description="forward(model, inputs), where the call isn't model(inputs)")


_LATER_COMPUTE: dict[str, Any] = {"mixed_precision": "auto", "accumulation_steps": 1}


class ComputeConfig(Section):
    """How processors are used; results depend on it in the last digits, so it is part of the recipe."""

    threads: int | Literal["auto"] | None = Field(
        None, description="CPU threads of training; auto: the fastest in a short measurement; none: PyTorch's default"
    )
    channels_last: bool | Literal["auto"] = Field(False, description="memory format of training; auto: the faster, measured")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="write a checkpoint every so many training steps, too; none: behind every epoch only"
    )

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="of training: bf16, fp16 or no; auto: bf16 on a GPU that has it, else fp16, and no on a CPU"
    )
    accumulation_steps: int = Field(
        1,
        ge=1,
        description="parts in which a training step's images go through the network one after another, their gradients summed "
        "up: less memory; data.batch_size stays that of the step",
    )

    @model_serializer(mode="wrap")
    def _without_later(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that came later are left out where they change nothing, so that runs from before can go on."""
        tree: dict[str, Any] = serialize(self)
        return {name: value for name, value in tree.items() if _LATER_COMPUTE.get(name, ...) != value}

    @field_validator("threads")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least one thread")
        return value


class ExportConfig(Section):
    """What is written and measured at the end."""

    onnx: bool = Field(True, description="write small.onnx and check it against onnxruntime")
    formats: tuple[Literal["onnx", "pt2", "openvino", "executorch"], ...] | None = Field(
        None, description="formats to write besides, each checked against PyTorch: pt2, openvino, executorch; none: no others"
    )
    latency_runs: int = Field(30, ge=3, description="timed runs of each network, alternating; the median is reported")
    threads: int = Field(1, ge=1, description="CPU threads while timing")


class Recipe(Section):
    """A whole run: load or train, prune, recover, evaluate, export, report."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="name of the run, in the report's header")
    seed: int = Field(0, ge=0, description="of everything random")
    log_with: Literal["tensorboard", "trackio", "mlflow"] | None = Field(
        None,
        description="also write every epoch, for TensorBoard into the folder logs of the run, for trackio into its own database, "
        "as a project of the recipe's name, for mlflow into logs/mlflow.db of the run or to $MLFLOW_TRACKING_URI; none: the "
        "report alone",
    )
    model: ModelConfig
    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    transfer: TransferConfig | None = Field(
        None, description="a new head for a trained network; none: the network as it is built"
    )
    train: OptimizerConfig = Field(default=OptimizerConfig(epochs=0), description="training before pruning; epochs = 0: none")  # pyright: ignore[reportCallIssue]
    sparsity: SparsityConfig | None = Field(
        None, description="training with a sparsity method, which decides what goes; none: prune.criterion decides"
    )
    prune: PruneConfig = PruneConfig()  # pyright: ignore[reportCallIssue]
    recover: RecoverConfig = RecoverConfig()  # pyright: ignore[reportCallIssue]
    functions: FunctionsConfig = FunctionsConfig()  # pyright: ignore[reportCallIssue]
    compute: ComputeConfig = ComputeConfig()  # pyright: ignore[reportCallIssue]
    export: ExportConfig = ExportConfig()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="before")
    @classmethod
    def _default_rungs(cls, given: Any) -> Any:
        """The ladder that measured best (docs/adr/0028), where no rungs are named and it can be had: a teacher's answers are
        compared as classes, and behind a sparsity method there is little to reconstruct."""
        if not isinstance(given, dict):
            return given
        tree = cast("dict[str, Any]", given)
        recover, functions = tree.get("recover", {}), tree.get("functions", {})
        plain = tree.get("sparsity") is not None or not (isinstance(recover, dict) and isinstance(functions, dict))
        if plain or "rungs" in recover or functions.get("loss") is not None:
            return tree
        untaught = recover.get("distill") == 0 and not recover.get("distill_features")
        return {**tree, "recover": {**recover, "rungs": [*LADDER[:-1], "fine-tune"] if untaught else LADDER}}

    @model_validator(mode="after")
    def _check_sparsity(self) -> Recipe:
        chooses = ["criterion", "criterion_options", "allocator", "allocator_options", "channels_per_round"]
        chooses += ["momentum", "batches"]
        plain = PruneConfig()  # pyright: ignore[reportCallIssue]
        named = [f"prune.{name}" for name in chooses if getattr(self.prune, name) != getattr(plain, name)]
        if self.sparsity is not None and named:
            raise ValueError(f"sparsity.method decides what goes, so that {' and '.join(named)} would do nothing: leave it out")
        if self.sparsity is not None and self.sparsity.fold_batches and "compensate" in self.recover.rungs:
            raise ValueError("sparsity.fold_batches and the rung compensate would both fold means: leave one of them out")
        return self

    @model_validator(mode="after")
    def _check_distillation(self) -> Recipe:
        if (self.recover.distill or self.recover.distill_features) and self.functions.loss is not None:
            raise ValueError("recover.distill compares class probabilities: it can't be had with a functions.loss of your own")
        return self


def load_recipe(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; ``overrides`` are ``section.field=value`` strings, the value in TOML syntax or bare text.

    Raises:
        RecipeError: the file is missing or isn't TOML, a field is unknown or has a wrong value. The message names the field.
    """
    tree = read_toml(Path(path))
    for item in overrides or []:
        override(tree, item)
    return parse_recipe(tree, str(path))


def parse_recipe(tree: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check a nested dict against the schema; see `load_recipe`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(problem(cast("dict[str, Any]", e), Recipe) for e in error.errors())
        raise RecipeError(f"{where}: {problems}") from None
