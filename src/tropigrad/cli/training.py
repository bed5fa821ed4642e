"""`tropigrad train`: one command a network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from ..perf_reports import output
from .ranks import met, place
from .terminal import Json, bars, fail, say

if TYPE_CHECKING:
    import torch.distributed as dist

    from ..perf_reports.data import Dataset

train = typer.Typer(no_args_is_help=True, help="Train one network, and leave it in a folder.")

Data = Annotated[
    str | None,
    typer.Option(help="digits, iris, mnist, mnist:DIR or cifar10:DIR (default: mnist with --data-dir, else digits)."),
]
DataDir = Annotated[Path | None, typer.Option(help="A folder of MNIST-format files (default: TROPIGRAD_DATA).")]
Seed = Annotated[int, typer.Option(help="Of all that is drawn: the split, the start, the order of the samples.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")]
Out = Annotated[Path, typer.Option(help="Where metrics.jsonl, model.pt and the plot go.")]


def dataset_of(data: str | None, data_dir: Path | None, seed: int) -> Dataset:
    """The data set that --data and --data-dir name."""
    from ..perf_reports.data import find_data_dir, load

    return load(data or ("mnist" if data_dir else "digits"), find_data_dir(data_dir), seed)


def finish(
    run: Callable[[Callable[[int, int, str], None]], dict[str, Any]],
    lines: Callable[[dict[str, Any]], list[str]],
    out: Path,
    as_json: bool,
) -> NoReturn:
    """Train, print the summary and end the command; what is wrong is one line on stderr.

    run: takes what shows progress, and gives the summary. lines: the summary, for people.

    Of the ranks that torchrun has started, rank 0 trains alone.
    """
    rank, ranks = place()
    if rank > 0:
        raise typer.Exit
    if ranks > 1:
        say(
            f"tropigrad: this training is not shared out: rank 0 of {ranks} does all of it, and the others have ended; "
            "without torchrun it has all threads"
        )
    _finish(lambda progress, _: run(progress), lines, out, as_json, None)


def finish_shared(
    run: Callable[[Callable[[int, int, str], None], dist.ProcessGroup | None], dict[str, Any]],
    lines: Callable[[dict[str, Any]], list[str]],
    out: Path,
    as_json: bool,
    timeout: float,
) -> NoReturn:
    """`finish`, of a training that takes the group of the ranks that torchrun has started. Rank 0 prints.

    timeout: seconds that a rank waits for the others.
    """
    try:
        with met(timeout) as group:
            _finish(run, lines, out, as_json, group)
    except ConnectionError as error:  # ranks were lost: the message names them
        fail(f"rank {place().rank}: {error} (--resume)", 1)


def _finish(
    run: Callable[[Callable[[int, int, str], None], dist.ProcessGroup | None], dict[str, Any]],
    lines: Callable[[dict[str, Any]], list[str]],
    out: Path,
    as_json: bool,
    group: dist.ProcessGroup | None,
) -> NoReturn:
    from ..kernels.runtime.ranks import RankFailed

    leads = place().rank == 0
    try:
        with bars() if leads else nullcontext() as bar:
            summary = run(lambda done, total, what: bar("training", done, total, what) if bar else None, group)
    except ConnectionError:
        raise
    except ValueError as error:  # bad settings, bad data, nothing to resume: each says so in one line
        fail(error)
    except RankFailed as error:
        fail(error)
    except KeyboardInterrupt:
        fail(f"interrupted; --resume goes on from the checkpoint in {out}, where there is one", 130)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}; expected a folder that can be written: --out DIR")
    if leads:
        print(output.as_json(summary) if as_json else "\n".join(lines(summary)))
    raise typer.Exit(130 if summary["interrupted"] else 0)


@train.command("maxplus")
def train_maxplus(
    data: Data = None,
    data_dir: DataDir = None,
    features: Annotated[
        str,
        typer.Option(help="pixels, components (20 principal ones) or directions (these along 100 random directions)."),
    ] = "pixels",
    hidden: Annotated[
        int | None,
        typer.Option(
            help="Hidden units (default: 300, or a quarter of the samples where that is less). Deeper networks have so "
            "many in the first layer (default: 256), then half and a quarter of them."
        ),
    ] = None,
    objective: Annotated[
        Literal["auto", "mean", "cvar", "worst"],
        typer.Option(
            help="mean or cvar (of a batch the mean or the worst share), worst (of all the worst sample: the paper's), "
            "or auto: the one that wins on held-out samples."
        ),
    ] = "auto",
    alpha: Annotated[float, typer.Option(help="cvar: the worst share.")] = 0.1,
    temperature: Annotated[
        float | None, typer.Option(help="mean, cvar: T of the cross-entropy of scores / T (default: sought).")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="mean, cvar: of the first step; it falls along a cosine (default: sought).")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="mean, cvar: in all (default: 10, of few samples 1,500 batches).")
    ] = None,
    rule: Annotated[
        Literal["adam", "rmsprop", "adagrad", "sgd"], typer.Option(help="mean, cvar: the optimizer's.")
    ] = "adam",
    momentum: Annotated[float, typer.Option(help="mean, cvar: of --rule sgd or rmsprop.")] = 0.0,
    shifts: Annotated[
        int, typer.Option(help="mean, cvar: each image is moved at random by so many pixels, at most.")
    ] = 0,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="mean, cvar: sparse gradients, and steps on what they list.")
    ] = False,
    network: Annotated[
        Literal["linear-min-max", "max-plus-mlp", "residual"],
        typer.Option(help="linear-min-max (of medoids; the paper's), or deeper: max-plus-mlp, residual."),
    ] = "linear-min-max",
    iterations: Annotated[
        int, typer.Option(help="worst: iterations in all; it ends sooner where the loss is 0.")
    ] = 300,
    seed: Seed = 0,
    margin: Annotated[float, typer.Option(help="worst: of the hinge, in the units of the scores.")] = 4.0,
    scale: Annotated[
        float | None,
        typer.Option(help="λ of A = λ[I; −I] at the start; a power of two (default: 64 for worst, 1 for the others)."),
    ] = None,
    step: Annotated[Literal["polyak", "sqrt", "power"], typer.Option(help="worst: the step rule.")] = "polyak",
    loss: Annotated[Literal["hinge", "cross_entropy"], typer.Option(help="worst: of each sample.")] = "hinge",
    memory: Annotated[
        Literal["auto", "trees", "winners"], typer.Option(help="worst: what an iteration keeps.")
    ] = "auto",
    train_a: Annotated[
        bool | None,
        typer.Option(
            "--train-a/--fix-a", help="Whether A moves (default: with mean and cvar it does, with worst not)."
        ),
    ] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the training samples that is held out to choose by.")
    ] = 0.1,
    keep: Annotated[
        Literal["validation", "loss"],
        typer.Option(
            help="worst: the iterate that is left, the best on the validation samples or of the least worst loss."
        ),
    ] = "validation",
    timeout: Annotated[
        float, typer.Option(help="worst, under torchrun: seconds that a rank waits for the others.", min=1.0)
    ] = 300.0,
    resume: Resume = False,
    out: Out = Path("runs/maxplus"),
    as_json: Json = False,
) -> None:
    """A max-plus network, by the objective that wins on held-out samples. Ctrl-C keeps a checkpoint.

    Under torchrun, --objective worst shares the samples out, with the iterates of one process.
    """
    from ..perf_reports.studies import maxplus

    if objective == "worst":
        others = "expected --objective mean, cvar or auto"
        if network != "linear-min-max":
            fail(f"--objective worst with --network {network}; {others}, or --network linear-min-max")
        of_batches = {"--momentum": momentum, "--shifts": shifts, "--sparse": sparse}
        if asked := [name for name, value in of_batches.items() if value]:
            fail(f"--objective worst with {' and '.join(asked)}, which mini-batches alone take; {others}")
    settings: dict[str, Any] = {"features": features, "hidden": hidden, "iterations": iterations, "seed": seed}
    settings |= {"margin": margin, "step": step, "loss": loss, "memory": memory, "validation": validation}
    if objective == "worst":
        settings |= {"scale": 64.0 if scale is None else scale, "train_a": bool(train_a), "keep": keep}
    else:
        settings |= {"objective": objective, "alpha": alpha, "temperature": temperature, "rate": rate, "rule": rule}
        settings |= {"epochs": epochs, "scale": scale, "train_a": train_a, "network": network}
        settings |= {"momentum": momentum, "shifts": shifts, "sparse": sparse}

    def shared(progress: Callable[[int, int, str], None], group: dist.ProcessGroup | None) -> dict[str, Any]:
        dataset = dataset_of(data, data_dir, seed)
        return maxplus.train(dataset, out, **settings, resume=resume, progress=progress, group=group)

    def run(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        dataset = dataset_of(data, data_dir, seed)
        return maxplus.train_objective(dataset, out, **settings, resume=resume, progress=progress)

    if objective == "worst":
        finish_shared(shared, maxplus.summary_lines, out, as_json, timeout)
    finish(run, maxplus.objective_lines, out, as_json)


@train.command("gsgd")
def train_gsgd(
    data: Data = None,
    data_dir: DataDir = None,
    network: Annotated[
        str, typer.Option(help="mlp (four hidden layers of 64), cnn (six convolutions), unet or densenet.")
    ] = "mlp",
    optimizer: Annotated[str, typer.Option(help="gsgd, sgd or path_sgd.")] = "gsgd",
    lr: Annotated[float, typer.Option(help="Learning rate; it falls by 1 % an epoch.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Of path values, in gsgd.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="On path values, in gsgd.")] = 0.0,
    unit: Annotated[bool, typer.Option(help="Start with a skeleton of ones, else with torch's weights.")] = True,
    spread: Annotated[float, typer.Option(help="Rescale the start by random c, of this spread of log c.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Samples in a mini-batch.")] = 64,
    epochs: Annotated[int, typer.Option(help="Epochs in all.")] = 20,
    seed: Seed = 0,
    resume: Resume = False,
    out: Out = Path("runs/gsgd"),
    as_json: Json = False,
) -> None:
    """A ReLU network, by SGD on its path values or by a rival. Ctrl-C keeps a checkpoint."""
    from ..perf_reports.studies import gsgd

    recipe = gsgd.Recipe(network, optimizer, lr, momentum, weight_decay, unit, spread, batch, seed)

    def run(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        dataset = dataset_of(data, data_dir, seed)
        return gsgd.train(dataset, out, recipe, epochs=epochs, resume=resume, progress=progress)

    finish(run, gsgd.summary_lines, out, as_json)


@train.command("explicit")
def train_explicit(
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, iris, mnist, mnist:DIR, cifar10:DIR or text:FILE, a file or a folder of text (default: mnist "
            "with --data-dir, else digits)."
        ),
    ] = None,
    data_dir: DataDir = None,
    task: Annotated[
        Literal["classify", "lm"] | None,
        typer.Option(
            help="classify, or lm: a language model of a text (default: lm of a text). A text is classified by speaker."
        ),
    ] = None,
    hidden: Annotated[
        int | None,
        typer.Option(help="classify: hidden units of two layers (default: 1000, or four a class of few samples)."),
    ] = None,
    steps: Annotated[int, typer.Option(help="classify: steps of Adam after the solution, beside a random start.")] = 10,
    scale: Annotated[float, typer.Option(help="classify: K, the sum that each sample is scaled to.")] = 32.0,
    offset: Annotated[
        float | None, typer.Option(help="classify: added to each pixel first (default: an eighth of the largest).")
    ] = None,
    radius: Annotated[
        int | None, typer.Option(help="lm: tokens of a context (default: 5 characters or 3 words).")
    ] = None,
    mode: Annotated[
        Literal["sum", "cat", "suffix"], typer.Option(help="lm: the features of a context; sum is the paper's.")
    ] = "suffix",
    tokens: Annotated[
        Literal["characters", "words"] | None,
        typer.Option(help="lm: what a token is (default: words where the text holds <unk>, else characters)."),
    ] = None,
    positions: Annotated[int, typer.Option(help="lm: test tokens to predict, the first ones; 0: all.")] = 50_000,
    sample: Annotated[int, typer.Option(help="lm: tokens drawn at the end (0: 300 characters or 40 words).")] = 0,
    temperature: Annotated[float, typer.Option(help="lm: of these.")] = 0.8,
    seed: Seed = 0,
    resume: Resume = False,
    out: Out = Path("runs/explicit"),
    as_json: Json = False,
) -> None:
    """Softmax networks solved from counts, with no gradient step. Ctrl-C ends after the part under way."""
    from ..perf_reports.studies.explicit import text_training, training
    from ..perf_reports.texts import read_speeches, read_text

    is_text = data is not None and data.startswith("text:")
    path = Path(data.removeprefix("text:")) if is_text and data else Path()
    if task == "lm" and not is_text:
        fail(f"--task lm needs a text; got --data {data}; expected --data text:FILE")

    def classified(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        if is_text:
            samples = training.Samples.of_speeches(read_speeches(path), seed)
        else:
            samples = training.Samples.of_dataset(dataset_of(data, data_dir, seed))
        settings: dict[str, Any] = {"hidden": hidden, "steps": steps, "scale": scale, "offset": offset, "seed": seed}
        return training.train(samples, out, **settings, resume=resume, progress=progress)

    def modelled(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        settings: dict[str, Any] = {"radius": radius, "mode": mode, "positions": positions, "sample": sample}
        settings |= {"temperature": temperature, "seed": seed}
        return text_training.train(read_text(path, tokens), out, **settings, resume=resume, progress=progress)

    if is_text and task != "classify":
        finish(modelled, text_training.summary_lines, out, as_json)
    else:
        finish(classified, training.summary_lines, out, as_json)


@train.command("ftprop")
def train_ftprop(
    data: Data = None,
    data_dir: DataDir = None,
    net: Annotated[
        Literal["mlp", "convnet4", "convnet8"] | None,
        typer.Option(help="mlp (two hidden layers of 256), convnet4 or convnet8 (default: convnet4 for cifar10)."),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="Train one network, by soft_hinge, sste, ste, hinge or another rule of hard_threshold, or with relu "
            "or saturated_relu (default: the first four and these two, side by side)."
        ),
    ] = None,
    activation: Annotated[
        Literal["sign", "step", "quantized_relu"], typer.Option(help="The threshold that the rules are for.")
    ] = "sign",
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs in all (default: 20; mlp on larger sets 5; convnets 300 on a GPU, else 5)."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Networks a method (default: 3 side by side, 1 with --rule).")
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    out: Out = Path("runs/ftprop"),
    as_json: Json = False,
) -> None:
    """A network of hard thresholds, by feasible target propagation; without --rule, all rules side by side."""
    from ..perf_reports.studies import ftprop

    def run(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        dataset = dataset_of(data, data_dir, seed)
        network = net or ("convnet4" if dataset.name == "cifar10" else "mlp")
        recipe = ftprop.Recipe(
            network=network,
            rule=rule or ftprop.METHODS[0],
            epochs=ftprop.usual_epochs(network, dataset) if epochs is None else epochs,
            activation=activation,
            seed=seed,
        )
        methods = ftprop.methods_of(activation) if rule is None else None
        several = (1 if rule else ftprop.SEEDS) if seeds is None else seeds
        return ftprop.train(dataset, out, recipe, methods=methods, seeds=several, resume=resume, progress=progress)

    finish(run, ftprop.summary_lines, out, as_json)


@train.command("l1path")
def train_l1path(
    data: Data = None,
    data_dir: DataDir = None,
    method: Annotated[
        Literal["sweep", "held", "mpg"],
        typer.Option(
            help="sweep: weighted sums, from dense to sparse; held: continuation at held λ, which needs no grid; mpg: "
            "the paper's, by multiobjective proximal gradients."
        ),
    ] = "sweep",
    points: Annotated[int, typer.Option(help="Points in all.")] = 20,
    first_steps: Annotated[int, typer.Option(help="Epochs to the first point.")] = 100,
    correctors: Annotated[int, typer.Option(help="Epochs before each other point.")] = 20,
    h: Annotated[float | None, typer.Option(help="Step of the correctors (default: 0.1, colour images 0.01).")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Samples of a mini-batch (default: a tenth of the training samples).")
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    out: Out = Path("runs/l1path"),
    as_json: Json = False,
) -> None:
    """The front of a network's loss and ℓ¹ norm, from sparse to dense. Ctrl-C keeps the points so far."""
    from ..perf_reports.studies import l1path

    recipe = l1path.Recipe(method, points, first_steps, correctors, h, batch, seed)

    def run(progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        dataset = dataset_of(data, data_dir, seed)
        # on stderr, above the bar where there is one: points are what a user waits for
        return l1path.train(dataset, out, recipe, resume=resume, progress=progress, tell=say)

    finish(run, l1path.summary_lines, out, as_json)
