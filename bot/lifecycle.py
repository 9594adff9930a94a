"""The state machine of an exchange: one table of legal transitions and their effect on the claim.

An exchange is one row of the store.  Beside its status the row has a claim: the process that
works on it (`owner`) and a number that every claim raises (`fence`).  An exchange is *owed*
while it is open or answered and no worker of this process has claimed it; claims of earlier
processes are void.  Each write of a worker names its fence, so that a worker whose claim was
revoked changes nothing any more.

`bot/chat/exchanges.py` performs the transitions, except EXPIRE (bot/storage/retention.py) and the
CLEAR of rows whose keys are lost (bot/storage/lost_keys.py).  The store's statements for them take
their WHERE clauses from this table (`change` and `allowed` in bot/storage/conditions.py), so that
an illegal one changes no row.
"""

from dataclasses import dataclass
from enum import StrEnum, auto

from bot.domain import Status

_UNFINISHED = frozenset({Status.OPEN, Status.ANSWERED})
_KNOWN = frozenset(Status) - {Status.CLEARED}


class ClaimEffect(StrEnum):
    """Effect of a transition on the claim of its row."""

    TAKE = auto()  # owned by this process, with a higher fence
    KEEP = auto()
    RELEASE = auto()  # owned by no process
    REVOKE = auto()  # owned by no process, with a higher fence: a worker loses its claim


@dataclass(frozen=True, slots=True)
class Transition:
    """`target` None leaves the status; with `needs_claim`, only the worker that holds the claim may."""

    origins: frozenset[Status]
    target: Status | None
    claim: ClaimEffect
    needs_claim: bool


# A worker starts on what is owed: after a restart, or because its platform sent the message again.
CLAIM = Transition(_UNFINISHED, None, ClaimEffect.TAKE, needs_claim=False)
# A worker ends without a result: shutdown or cancellation.
RELEASE = Transition(_UNFINISHED, None, ClaimEffect.RELEASE, needs_claim=True)
# A message of the reply was sent; its id must be known before anything else is sent.
RECORD_PART = Transition(_UNFINISHED, None, ClaimEffect.KEEP, needs_claim=True)
# A thread was opened for the answer, which is shown there.
MOVE = Transition(_UNFINISHED, None, ClaimEffect.KEEP, needs_claim=True)
# The files of the message, or what was said before it, were read, or could not be.
RECORD_FILES = Transition(frozenset({Status.OPEN}), None, ClaimEffect.KEEP, needs_claim=True)
# The answer is complete, or partial after a stop, a time limit or a fault; or a sentence instead of one.
# From ANSWERED too: the acknowledgement of an earlier try may have been lost.
ANSWER = Transition(_UNFINISHED, Status.ANSWERED, ClaimEffect.KEEP, needs_claim=True)
# The last edit has landed, or there is nothing to show.
COMPLETE = Transition(frozenset({Status.ANSWERED}), Status.DELIVERED, ClaimEffect.RELEASE, needs_claim=True)
# The platform will never show it.
FAIL = Transition(_UNFINISHED, Status.FAILED, ClaimEffect.RELEASE, needs_claim=True)
# The question was edited or got another part, or /retry or Regenerate asks for another answer.
REQUEUE = Transition(_KNOWN, Status.OPEN, ClaimEffect.TAKE, needs_claim=False)
# Its message was deleted, or /clear or /forget me covers it.
CLEAR = Transition(_KNOWN, Status.CLEARED, ClaimEffect.REVOKE, needs_claim=False)
# It is older than `storage.retention_days`; an open question still waits for its answer.
EXPIRE = Transition(_KNOWN - {Status.OPEN}, Status.CLEARED, ClaimEffect.REVOKE, needs_claim=False)

TRANSITIONS: dict[str, Transition] = {
    "claim": CLAIM,
    "release": RELEASE,
    "record_part": RECORD_PART,
    "move": MOVE,
    "record_files": RECORD_FILES,
    "answer": ANSWER,
    "complete": COMPLETE,
    "fail": FAIL,
    "requeue": REQUEUE,
    "clear": CLEAR,
    "expire": EXPIRE,
}
