"""Stand-ins at the seams; they pass the same contract tests as the real parts."""

from tests.fakes.clock import FastClock as FastClock
from tests.fakes.clock import ManualClock as ManualClock
from tests.fakes.engine import ScriptedEngine as ScriptedEngine
from tests.fakes.messenger import Failure as Failure
from tests.fakes.messenger import FakeMessenger as FakeMessenger
