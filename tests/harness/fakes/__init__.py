"""Stand-ins at the seams; they pass the same contract tests as the real parts."""

from tests.harness.fakes.clock import FastClock as FastClock
from tests.harness.fakes.clock import JumpingClock as JumpingClock
from tests.harness.fakes.clock import ManualClock as ManualClock
from tests.harness.fakes.engine import ScriptedEngine as ScriptedEngine
from tests.harness.fakes.known_messages import FakeKnownMessages as FakeKnownMessages
from tests.harness.fakes.messenger import Failure as Failure
from tests.harness.fakes.messenger import FakeMessenger as FakeMessenger
