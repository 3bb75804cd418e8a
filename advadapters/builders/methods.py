"""config.loss and its section -> a training method: views, oat or twins."""

from advadapters.configs import Section
from advadapters.errors import UsageError, pick
from advadapters.training import oat, twins


def read_oat(c, attacks, film):
    """config.oat -> OAT; film: the model's, or None."""
    lambdas = read_lambdas(c, "lambdas")
    zeros = c.take("zeros", float, low=0.0, below=1.0)
    if 0.0 not in lambdas and zeros:
        raise UsageError(
            f"{c.name}.zeros={zeros} is the share of lambda 0, which is not in "
            f"{c.name}.lambdas={lambdas}: add 0.0, or set zeros=0.0"
        )
    mixed = c.take("mixed", bool)
    if mixed == bool(film):
        raise UsageError(
            f"{c.name}.mixed={mixed}: lambda mixes adapters or goes through FiLM, one of "
            "them: " + ("set config.model.film={}" if mixed else "set config.model.film")
        )
    if film and film.encoding != "none":
        need_known(lambdas, film, f"{c.name}.lambdas")
    widths = c.take("widths", tuple, of=float)
    if sorted(set(widths)) != list(widths) or widths[-1:] != (1.0,) or widths[0] <= 0:
        raise UsageError(
            f"{c.name}.widths must be factors above 0, growing to 1.0, got {widths}"
        )
    if mixed and len(widths) > 1:
        raise UsageError(f"{c.name}.mixed goes with one width, got widths={widths}")
    return oat.OAT(
        lambdas=lambdas,
        zeros=zeros or (1 / len(lambdas) if 0.0 in lambdas else 0.0),
        attack=pick(attacks, c.take("attack", str), f"{c.name}.attack"),
        dual=c.take("dual", bool) and not mixed,
        widths=widths,
        mixed=mixed,
    )


def read_lambdas(c, key):
    """Different numbers in [0, 1], in order, at least one above 0."""
    lambdas = c.take(key, tuple, of=float)
    wrong = [lam for lam in lambdas if not 0 <= lam <= 1]
    if wrong or list(lambdas) != sorted(set(lambdas)) or not any(lambdas):
        raise UsageError(
            f"{c.name}.{key} must be growing numbers from 0 to 1, not only 0, got {lambdas}"
        )
    return lambdas


def need_known(lambdas, film, where):
    """Raises UsageError for a lambda that the encoding has no row for."""
    unknown = [lam for lam in lambdas if lam not in film.lambdas]
    if unknown:
        raise UsageError(
            f"{where}: the {film.encoding} encoding has no row for {unknown}; it has "
            f"{film.lambdas}; the encoding 'none' takes any lambda"
        )


def read_knobs(method, film, numbers):
    """{"lambda": numbers, "width": numbers}, either or both, -> cases of an OAT network.

    Raises UsageError for a lambda outside [0, 1] or that the encoding does not know, and
    for a width that was not trained.
    """
    lambdas = numbers.get("lambda", method.lambdas)
    widths = numbers.get("width", method.widths)
    wrong = [lam for lam in lambdas if not 0 <= lam <= 1]
    if wrong:
        raise UsageError(f"--lambda must be within 0 and 1, got {wrong}")
    if film and film.encoding != "none":
        need_known(lambdas, film, "--lambda")
    unknown = [width for width in widths if width not in method.widths]
    if unknown:
        raise UsageError(f"--width: {unknown} was not trained; there are: {method.widths}")
    return [method.case(lam, width) for width in widths for lam in lambdas]


def read_twins(c, attacks, film):
    """config.twins -> TWINS."""
    if film:
        raise UsageError("config.model.film conditions on lambda, which TWINS has not")
    return twins.TWINS(
        weight=c.take("weight", float, low=0.0),
        attack=pick(attacks, c.take("attack", str), f"{c.name}.attack"),
        beta=c.take("beta", float, low=0.0),
        keep_norms=c.take("keep_norms", bool),
        gradient_norms=c.take("gradient_norms", bool),
    )


READ = {"oat": read_oat, "twins": read_twins}


def read(kind, section, attacks, film, *, views):
    """The method of a config that is no list of views; views: the section of them."""
    if views:
        raise UsageError(
            f"config.loss={kind!r} has no views, got config.views={sorted(views)}: set "
            "config.views={}, or config.loss='views'"
        )
    with Section(f"config.{kind}", section) as c:
        return READ[kind](c, attacks, film)


def check(method, network, run):
    """Raises UsageError for a method and a run that do not go together.

    network: the full one's first parameters as shapes. run: {"patterns", "separate",
    "perturbation", "start", "rows"}, rows being those of one device and part of a batch.
    """
    check_rows(method, run["rows"])
    statistics = bool(network["batch_stats"])
    name = type(method).__name__
    if run["perturbation"]:
        raise UsageError(f"config.weight_perturbation is for views; {name} has none")
    if statistics and not run["separate"]:
        raise UsageError(
            f"{name} keeps the batch statistics of its domains apart: set "
            "config.statistics='separate'"
        )
    if len(method.domains()) > 1 and not run["patterns"]:
        raise UsageError(
            f"{name} has {len(method.domains())} domains, which differ in config.adapters: "
            "name some, like ('norms',)"
        )
    if isinstance(method, twins.TWINS):
        check_twins(method, statistics, run["start"])
    elif method.mixed and statistics:
        raise UsageError("config.oat.mixed needs a network without batch norm")


def check_rows(method, rows):
    """Raises UsageError if the rows of a device do not split as the method needs it."""
    if isinstance(method, twins.TWINS):
        wrong, need = rows % 2, "an even number, half for each wing"
    else:
        zero, rest = oat.split_rows(rows, method.zeros)
        wrong = not len(rest)
        need = f"more: {len(zero)} have lambda 0, and some must be attacked"
    if wrong:
        raise UsageError(
            f"config.batch_size gives {rows} images to each device and part; "
            f"{type(method).__name__} needs {need}"
        )


def check_twins(method, statistics, start):
    """Raises UsageError where there is nothing to freeze."""
    if not statistics and not method.keep_norms:
        raise UsageError(
            "TWINS freezes batch statistics, and this network has none: give a model with "
            "norm='batch', or set config.twins.keep_norms=True to freeze scale and offset"
        )
    if start is None:
        raise UsageError(
            "TWINS fine-tunes a robust network: name it in config.start.workdir or "
            "config.start.weights"
        )
