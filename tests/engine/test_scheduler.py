"""The scheduler: fairness, no starvation, unique slots."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bot.engine.serving.queue import RoundRobinQueue
from bot.engine.serving.scheduler import Scheduler


@dataclass(frozen=True, eq=False)
class FakeJob:
    name: str = ""
    user: str = ""
    channel: str = ""
    prompt_tokens: int = 10


def names(jobs: Iterable[FakeJob]) -> list[str]:
    return [job.name for job in jobs]


def rotation(*jobs: FakeJob) -> RoundRobinQueue[FakeJob]:
    queue: RoundRobinQueue[FakeJob] = RoundRobinQueue()
    for job in jobs:
        queue.push(job)
    return queue


def test_users_without_a_slot_go_first() -> None:
    queue = rotation(FakeJob("a1", "a"), FakeJob("b1", "b"), FakeJob("c1", "c"))
    assert [queue.pop({"a": 2, "b": 1}).name for _ in range(3)] == ["c1", "b1", "a1"]


def test_users_alternate_independent_of_arrival_order() -> None:
    queue = rotation(
        FakeJob("a1", "a"),
        FakeJob("a2", "a"),
        FakeJob("a3", "a"),
        FakeJob("b1", "b"),
        FakeJob("c1", "c"),
        FakeJob("b2", "b"),
    )
    assert names(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert [queue.pop().name for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_channels_of_one_user_alternate_and_one_channel_is_fifo() -> None:
    queue = rotation(FakeJob("x1", "a", "x"), FakeJob("x2", "a", "x"), FakeJob("y1", "a", "y"), FakeJob("b1", "b", "x"))
    assert names(queue) == ["x1", "b1", "y1", "x2"]


def test_a_served_user_queues_behind_the_waiting_ones() -> None:
    queue = rotation(FakeJob("a1", "a"), FakeJob("b1", "b"), FakeJob("c1", "c"))
    assert queue.pop().name == "a1"
    queue.push(FakeJob("a2", "a"))
    assert names(queue) == ["b1", "c1", "a2"]


def test_discarding_an_unknown_job_has_no_effect() -> None:
    queue = rotation(FakeJob("a1", "a"))
    assert not queue.discard(FakeJob("a2", "a"))
    assert not queue.discard(FakeJob("b1", "b"))
    assert len(queue) == 1


def test_short_prompts_wait_for_at_most_one_long_prompt_and_share_a_prefill() -> None:
    scheduler: Scheduler[FakeJob] = Scheduler(slots=8, prefill_tokens=100)
    sizes = {"long1": 900, "long2": 900, "short1": 40, "long3": 900, "short2": 40, "short3": 40}
    for name, size in sizes.items():
        scheduler.add(FakeJob(name, user=name, prompt_tokens=size))
    steps = [step for _ in range(9) if (step := scheduler.step()) is not None and step.is_prefill]
    assert [names(step.jobs) for step in steps] == [["long1"], ["short1", "short2"], ["short3"], ["long2"], ["long3"]]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_a_long_prompt_does_not_starve_behind_short_ones(sizes: list[int]) -> None:
    scheduler: Scheduler[FakeJob] = Scheduler(slots=5, prefill_tokens=40)
    long_one = FakeJob(prompt_tokens=50)
    scheduler.add(FakeJob(prompt_tokens=45))
    scheduler.add(long_one)
    prefills = 0
    while long_one in scheduler.running:
        while scheduler.free:
            scheduler.add(FakeJob(prompt_tokens=sizes[prefills % len(sizes)]))
        step = scheduler.step()
        assert step is not None
        prefills += step.is_prefill
        if step.is_prefill:
            for job in step.jobs:
                scheduler.remove(job)
        assert prefills <= 6


keys = st.sampled_from("abcd")


@given(st.lists(st.tuples(keys, keys), max_size=30), st.data())
def test_after_any_removal_the_first_waiting_job_is_served_next(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    queue = rotation(*(FakeJob(str(n), user, channel) for n, (user, channel) in enumerate(pairs)))
    while order := list(queue):
        if data.draw(st.booleans()):
            assert queue.pop() is order[0]
            assert list(queue) == order[1:]
        else:
            gone = data.draw(st.sampled_from(order))
            assert queue.discard(gone)
            assert set(queue) == set(order) - {gone}
        assert len(queue) == len(order) - 1


@given(st.lists(keys, min_size=1, max_size=40), st.lists(keys, max_size=40))
def test_with_n_users_each_is_served_within_n_pops(first: list[str], later: list[str]) -> None:
    queue = rotation(*(FakeJob(user=user) for user in first))
    everybody = len(set(first + later))
    turns: Counter[str] = Counter()  # pops of other users while this user waited
    while queue:
        waiting = {job.user for job in queue}
        served = queue.pop().user
        turns.update(waiting - {served})
        del turns[served]
        assert all(count < everybody for count in turns.values())
        if later:
            queue.push(FakeJob(user=later.pop()))


class SchedulerMachine(RuleBasedStateMachine):
    """Random sequences of add, remove and step."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[FakeJob] = Scheduler(slots=3, prefill_tokens=40)
        self.present: list[FakeJob] = []
        self.prefilled: list[FakeJob] = []
        self.was_prefill = False
        self.long_ones: Counter[FakeJob] = Counter()  # long prompts that overtook a short one with a slot
        self.short_ones: Counter[FakeJob] = Counter()  # steps of later jobs before a long one

    @rule(user=keys, channel=keys, tokens=st.integers(1, 60))
    def somebody_comes(self, user: str, channel: str, tokens: int) -> None:
        job = FakeJob(user=user, channel=channel, prompt_tokens=tokens)
        self.scheduler.add(job)
        self.present.append(job)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def somebody_leaves(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.present))
        assert self.scheduler.remove(job)
        self.present.remove(job)
        if job in self.prefilled:
            self.prefilled.remove(job)
        assert not self.scheduler.remove(job)

    @rule()
    def a_step_runs(self) -> None:
        running = dict(self.scheduler.running)
        new = [job for job in running if job not in self.prefilled]
        step = self.scheduler.step()
        if step is None:
            assert not running
            return
        assert step.jobs
        assert all(running[job] == slot for job, slot in step.jobs.items())
        if step.is_prefill:
            assert set(step.jobs) <= set(new)
            assert len(step.jobs) == 1 or sum(job.prompt_tokens for job in step.jobs) <= 40
            left = [job for job in new if job not in step.jobs]
            if any(job.prompt_tokens > 40 for job in step.jobs):
                self.long_ones.update(job for job in left if job.prompt_tokens <= 40)
            assert all(self.long_ones[job] <= 1 for job in left), "a short prompt waits for one long one at most"
            self.short_ones.update(job for job in left if job.prompt_tokens > 40)
            assert all(count <= 2 * 3 for count in self.short_ones.values()), "a long prompt's turn comes"
            assert not (self.was_prefill and self.prefilled), "running answers get a step between two prefills"
            self.prefilled += step.jobs
        else:
            assert list(step.jobs) == [job for job in running if job in self.prefilled]
            assert self.was_prefill or not new, "a new prompt waits for one step at most"
        self.was_prefill = step.is_prefill

    @invariant()
    def nobody_is_lost(self) -> None:
        scheduled = [*self.scheduler.running, *self.scheduler.waiting]
        assert len(scheduled) == len(self.present)
        assert set(scheduled) == set(self.present)

    @invariant()
    def no_slot_is_given_twice(self) -> None:
        slots = list(self.scheduler.running.values())
        assert len(set(slots)) == len(slots)
        assert set(slots) <= {0, 1, 2}
        assert len(slots) + self.scheduler.free == 3

    @invariant()
    def nobody_waits_while_a_slot_is_free(self) -> None:
        assert not (self.scheduler.waiting and self.scheduler.free)


TestSchedulerMachine = SchedulerMachine.TestCase
