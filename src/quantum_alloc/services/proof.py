"""What a check of a running installation answers: one result a case.

    Result(group, check, case, ok, detail)      PASS and FAIL
    not_needed(...)                             what this installation does not have, and why; counted apart

``prove`` prints results and counts them. Who looks at nothing has nothing to answer: a check without a single result
counts as failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GROUPS: Mapping[str, str] = {
    "allocation": "targets and what feeds them",
    "efficiency": "efficiency and attribution",
    "proposer": "proposals",
    "governor": "permits, blocks, fills",
}
"""Groups of checks, and what each is about."""


@dataclass(frozen=True, slots=True)
class Result:
    """One case of one check.

    Attributes:
        group: a name of ``GROUPS``.
        check: short id of the check, such as ``proposer-low-confidence``.
        case: what was looked at: a service, a key, a worked case.
        ok: whether it holds.
        detail: one sentence: what was found, and on failure also what was due.
        needed: False where this installation does not have what the check looks at; then ``ok`` is True and the detail
            says why.
    """

    group: str
    check: str
    case: str
    ok: bool
    detail: str
    needed: bool = True

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or NOT NEEDED."""
        return ("PASS" if self.ok else "FAIL") if self.needed else "NOT NEEDED"


def not_needed(group: str, check: str, case: str, why: str) -> Result:
    """A case that this installation does not have.

    Args:
        group: a name of ``GROUPS``.
        check: its id.
        case: what would be looked at.
        why: one sentence.
    """
    return Result(group, check, case, True, why, needed=False)


@dataclass(frozen=True, slots=True)
class Count:
    """What one check of one group came to.

    Attributes:
        group: a name of ``GROUPS``.
        check: its id.
        passed: cases that hold.
        failed: cases that do not.
        not_needed: cases that this installation does not have.
    """

    group: str
    check: str
    passed: int
    failed: int
    not_needed: int

    @property
    def ok(self) -> bool:
        """Whether the check holds: no case failed, and it has looked at something or says why not."""
        return not self.failed and self.passed + self.not_needed > 0


def counted(results: Sequence[Result], due: Sequence[tuple[str, str]]) -> list[Count]:
    """Results by check.

    Args:
        results: of all checks, in any order.
        due: group and id of every check that was to be made, in the order wanted; one without a result is failed.
    """
    found: dict[tuple[str, str], list[Result]] = {at: [] for at in due}
    for result in results:
        found.setdefault((result.group, result.check), []).append(result)
    return [
        Count(
            group,
            check,
            sum(r.ok and r.needed for r in rows),
            sum(not r.ok for r in rows),
            sum(not r.needed for r in rows),
        )
        for (group, check), rows in found.items()
    ]
