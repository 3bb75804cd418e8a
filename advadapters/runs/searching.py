"""Searches for soups that need not be among the evaluated ones, for `select --by=...`.

Each searches on the labelled images that `select` chooses on, and is judged on the same
unseen images. The networks, images and attacks are those of the evaluation: the command in
its file says which, and the step stands in its rows. The run is opened only where what the
file keeps is not enough.
"""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from advadapters import builders, flags, soups
from advadapters.data.splits import Subset
from advadapters.errors import UsageError
from advadapters.evaluation import choosing, shifts
from advadapters.evaluation.accuracy import Table
from advadapters.evaluation.choosing import SEARCHES, Search
from advadapters.evaluation.means import Mean
from advadapters.evaluation.rows import load
from advadapters.evaluation.shifts import corruption_of
from advadapters.files import AnyPath
from advadapters.networks import ENSEMBLE, Case, Identity, Knob, Variables, mixture_case
from advadapters.pixels import to_float
from advadapters.runs import image_choice, opening
from advadapters.runs.asking import Question, ask, predictor_of
from advadapters.runs.context import OpenRun
from advadapters.runs.predictions import Predictions
from advadapters.runs.requests import Request
from advadapters.shapes import Bool, Float, HostImages, Int, Mixture
from advadapters.soups.mixtures import Weights

DIGITS = 4  # of learned weights, as many as tables show


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Searches of one run.

    Attributes:
      folder: that of the run.
      name: the --name of its evaluation.
      kept: what the evaluation kept.
      labels: how many labelled images of a suite the searches look at, see
        `choosing.Labels`.
      floor: (suite, accuracy) below which `entropy` chooses no soup, or None.
    """

    folder: AnyPath
    name: str
    kept: Predictions
    labels: choosing.Labels
    floor: tuple[str, float] | None = None

    def search(
        self, ways: Sequence[str], tables: Mapping[str, Table | Mean]
    ) -> list[Search]:
        """All these ways of `SEARCHES` in each suite; tables: those of the suites.

        Where an attack makes the images, "learn" and "entropy" find none that are the same
        for all soups: they leave such suites out, and a line says so.
        """
        if any(network.kind == "lambda" for network in self.kept.networks):
            raise UsageError(
                f"--by={','.join(ways)}: the networks of {self.folder} go by lambda and "
                "are no soups; leave it out"
            )
        methods = {"greedy": self.greedy, "learn": self.learn, "entropy": self.entropy}
        assert methods.keys() == {*SEARCHES}
        searches = []
        for suite, table in tables.items():
            if isinstance(table, Mean):
                print(f"searches are left out in {suite}, which is a mean of suites")
                continue
            pool, _ = soups.split_images(len(table.index), self.used(suite))
            for way in ways:
                if way == "greedy" or suite == "clean" or corruption_of(suite):
                    searches.append(methods[way](suite, pool))
                else:
                    print(f"{way} is left out in {suite}, whose images an attack makes")
        return searches

    def greedy(self, suite: str, pool: Int[np.ndarray, " n"]) -> Search:
        """The greedy soup of accuracy on the labelled images."""

        def score(mixtures: list[Weights]) -> list[float]:
            cases = [mixture_case(self.domains, mixture) for mixture in mixtures]
            return [float(right[pool].mean()) for right in self.right(suite, cases)]

        mixture, _ = soups.greedy(score, len(self.domains))
        return self.judged(suite, "greedy", self.labels.most, len(self.domains), mixture)

    def learn(self, suite: str, pool: Int[np.ndarray, " n"]) -> Search:
        """The weights of least cross-entropy on the labelled images, from 0 to 1."""
        images, labels = self.images(suite, pool)
        count = len(self.domains)
        start = soups.average(count, range(count))
        apply, at, variables = self.functions
        learned = soups.learn(apply, at, variables, to_float(images), labels, start)
        mixture = rounded(learned.weights)
        return self.judged(suite, "learn", self.labels.most, count, mixture)

    def entropy(self, suite: str, pool: Int[np.ndarray, " n"]) -> Search:
        """The evaluated soup that is surest of the images, whose labels are not read."""
        images, labels = self.images(suite, pool)
        networks = [n for n in self.kept.networks if n.kind != ENSEMBLE]
        mixtures = [[n.mixture[name] for name in self.domains] for n in networks]
        values = self.entropies(mixtures, to_float(images), labels).mean(axis=1)
        robust = np.zeros(len(networks))
        name, floor = self.floor or ("", 0.0)
        if self.floor:
            cases = [mixture_case(self.domains, mixture) for mixture in mixtures]
            size = len(self.kept.tables[name].index)
            labelled, _ = soups.split_images(size, self.used(name))
            robust = self.right(name, cases)[:, labelled].mean(axis=1)
        try:
            chosen = soups.lowest_entropy(values, robust, floor)
        except ValueError as error:
            raise UsageError(f"--floor={name}={floor:g}: {error}") from None
        return self.judged(suite, "entropy", 0, len(networks), mixtures[chosen])

    def judged(
        self, suite: str, way: str, labels: int, candidates: int, mixture: Sequence[float]
    ) -> Search:
        """The result of a search, with what its soup says of each image of the suite."""
        case = mixture_case(self.domains, mixture)
        (right,) = self.right(suite, [case])
        return Search(suite, way, labels, candidates, case.identity, right)

    def used(self, suite: str) -> int:
        """How many labelled images of a suite the searches look at."""
        return self.labels.used(self.labels.most, len(self.kept.tables[suite].index))

    @functools.cached_property
    def domains(self) -> tuple[str, ...]:
        """The names of what is mixed."""
        return tuple(self.kept.networks[0].mixture)

    def right(self, suite: str, cases: Sequence[Case]) -> Bool[np.ndarray, "S N"]:
        """Whether the soups are right about each image, from the file where it has them."""
        table, networks = self.kept.tables[suite], self.kept.networks
        missing = [case for case in cases if case.identity not in networks]
        computed: dict[Identity, Bool[np.ndarray, " N"]] = {}
        if missing:
            opened, variables, test = self.reopened
            question = question_of(opened, suite, missing)
            (new,) = ask(opened, variables, test, {suite: question}, quiet=True).values()
            self.need_same(new.labels, table.labels)
            pairs = zip(missing, new.right, strict=True)
            computed = {case.identity: right for case, right in pairs}
        kept = dict(zip(networks, table.right, strict=True)) | computed
        return np.stack([kept[case.identity] for case in cases])

    def images(
        self, suite: str, numbers: Int[np.ndarray, " n"]
    ) -> tuple[HostImages, Int[np.ndarray, " n"]]:
        """(images uint8, labels) of so many images of a suite, as its networks saw them."""
        opened, _, test = self.reopened
        table, corruption = self.kept.tables[suite], corruption_of(suite)
        index = table.index[numbers]
        parts = []
        for batch in builders.eval_batches(opened.run, Subset(test, index), whole=True):
            # What a corruption draws belongs to the number of the image in the test set.
            batch["index"] = index[np.minimum(batch["index"], len(index) - 1)]
            mask = batch["mask"]
            if corruption:
                batch = shifts.make_corrupt(*corruption, mesh=opened.mesh)(batch)
            parts.append((np.asarray(batch["images"])[mask], batch["labels"][mask]))
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self.need_same(labels, table.labels[numbers])
        return images, labels

    @functools.cached_property
    def reopened(self) -> tuple[OpenRun, Variables, Any]:
        """(run, variables, test images) of the evaluation."""
        request = self.request
        opened = opening.open_trained(request.workdir, request.overrides)
        variables, _ = opening.restore_variables(opened, self.step, request.adapters)
        test = image_choice.test_images(opened.run, request.examples, request.names)
        return opened, variables, test

    @functools.cached_property
    def request(self) -> Request:
        """What was evaluated. Raises UsageError for what no search can look at again."""
        asked: dict[tuple, Request] = {}
        for command in self.kept.commands.values() or ("advadapters evaluate",):
            _, _, *argv = shlex.split(command)
            argv = [text for text in argv if not text.startswith("--workdir=")]
            request = flags.read(Request, [*argv, f"--workdir={self.folder}"])
            about = (request.examples, request.names, request.adapters, request.overrides)
            asked[about, request.statistics] = request
        if len(asked) > 1:
            raise UsageError(
                f"the suites of {self.folder} were not evaluated on the same images of the "
                "same networks: choose some by --suite, or leave out --by"
            )
        (request,) = asked.values()
        others = [
            suite for suite in self.kept.tables if suite.split("/")[0] in request.data
        ]
        for flag, given in (("data", others), ("statistics", request.statistics)):
            if given:
                raise UsageError(
                    f"{self.folder} was evaluated with --{flag}, and searches would have "
                    "to look at these networks and images again: evaluate without it, "
                    "choose other suites by --suite, or leave out --by"
                )
        return request

    @property
    def step(self) -> str:
        """That of the checkpoint that was evaluated."""
        steps = {of["step"] for of in self.kept.settings.values() if "step" in of}
        if len(steps) > 1:
            raise UsageError(
                f"the suites of {self.folder} are of the checkpoints {sorted(steps)}: "
                "evaluate one of them, or leave out --by"
            )
        if steps:
            return str(steps.pop())
        return str(load((self.folder / f"{self.name}.json").read_text())[0].step)

    @functools.cached_property
    def functions(self) -> tuple[Callable, Callable, Variables]:
        """(apply, at, ingredients) as `soups.learn` and `soups.make_scorer` take them."""
        opened, variables, _ = self.reopened
        network = opened.run.network

        def at(variables: Variables, weights: Mixture) -> Any:
            return network.at(variables, Knob(weights))

        return network.evaluate, at, variables

    @functools.cached_property
    def entropies(self) -> Callable[..., Float[np.ndarray, "S N"]]:
        """Mixtures, images, labels -> the entropy of each prediction."""
        return soups.make_scorer(*self.functions, measure=soups.entropy)

    def need_same(
        self, labels: Int[np.ndarray, "N ..."], kept: Int[np.ndarray, "N ..."]
    ) -> None:
        """Raises UsageError where the images are not those that were evaluated."""
        if not np.array_equal(labels, kept):
            raise UsageError(
                f"the test images of {self.folder} are not those that {self.name} is "
                "about: run `advadapters evaluate` again"
            )


def question_of(opened: OpenRun, suite: str, cases: Sequence[Case]) -> Question:
    """How the cases are asked in a suite of an evaluation.

    Raises UsageError for suites such as AutoAttack, which are no single attack.
    """
    suites, corruption = opened.run.evaluation.suites, corruption_of(suite)
    if suite != "clean" and not corruption and suite not in suites:
        raise UsageError(
            f"suite {suite!r} cannot be asked of {cases[0].identity}, which was not "
            "evaluated in it: choose others by --suite, or evaluate this soup as well"
        )
    attack = None if corruption else suites.get(suite)
    question = Question(cases, functools.partial(predictor_of, opened, attack))
    if corruption:
        move = shifts.make_corrupt(*corruption, mesh=opened.mesh)
        return question._replace(move=move)
    return question


def rounded(weights: Float[np.ndarray, " K"]) -> Weights:
    """Weights of `DIGITS` digits with the sum 1: the largest one takes what is left."""
    short = np.round(weights, DIGITS)
    largest = int(np.argmax(short))
    short[largest] = round(1 - float(np.delete(short, largest).sum()), DIGITS)
    return tuple(map(float, short))
