"""The settings as text for people: a reference page, and an example of an env file; both are made from the groups."""

from __future__ import annotations

from quantum_alloc.services.options import GROUPS, CommonOptions, RedisOptions
from quantum_alloc.services.settings import Variable, variables
from quantum_alloc.services.values import expected, render, wanted
from quantum_alloc.services.variables import CONTRACT_VARIABLES, RETIRED

ENV_FILES = {
    "allocation": "capital-allocation",
    "efficiency": "capital-efficiency",
    "proposer": "allocation-target",
    "apply": "apply-layer",
}
"""Names of files in /etc/quantum that are not the service's."""

_INTRODUCTION = """\
# Settings

Made by `quantum-alloc config docs settings`. Settings come from the environment; under systemd from files in
`/etc/quantum`. `quantum-alloc config check` lists every mistake at once, and a service that finds one ends with exit
code 78.

- Numbers are finite decimals; whitespace around a value is dropped, and an empty value counts as not set.
- systemd keeps inline comments in the value: put a comment on a line of its own.
- A mode is never an error: what is not its word is the safe mode, with a warning and a metric.
- A name that begins like ours and is not known is an error, as is a near miss of a known name.
- Intervals and ages are in seconds. Fractions are written as fractions: 0.4 for 40 %."""


def settings_page() -> str:
    """The reference of all variables, as Markdown."""
    lines = [_INTRODUCTION, ""]
    groups = (("Redis", RedisOptions), ("Common", CommonOptions), *((f"`{n}`", g) for n, g in GROUPS.items()))
    for title, group in groups:
        lines += [f"## {title}", ""]
        if title.startswith("`"):
            lines += [(group.__doc__ or "").splitlines()[0], ""]
        lines += ["| variable | default | unit | range | meaning |", "|---|---|---|---|---|"]
        lines += [_line(v) for v in variables(group)]
        lines.append("")
    later = sorted(CONTRACT_VARIABLES - {v.spec.env for _, group in groups for v in variables(group)})
    if later:
        lines += ["## Of later versions", "", "Accepted, and without effect in this version:", ""]
        lines += [", ".join(f"`{name}`" for name in later) + ".", ""]
    lines += ["## Retired", "", "Ignored, with a warning:", "", "| variable | why |", "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in sorted(RETIRED.items())]
    return "\n".join(lines)


def _line(variable: Variable) -> str:
    spec, kind = variable.spec, variable.kind
    default = f"`{render(spec.default)}`" if render(spec.default) else "none"
    return (
        f"| `{spec.env}` | {default} | {spec.unit or '-'} | {spec.range or spec.expects or kind.noun} | {spec.help} |"
    )


def example_file(name: str) -> str:
    """An env file of a service, every variable commented out at its default.

    Args:
        name: of a service.

    Raises:
        KeyError: there is no such service.
    """
    lines = [
        f"# Settings of {name}: /etc/quantum/{ENV_FILES.get(name, name)}.env",
        "# Comments stand on lines of their own: behind a value, systemd takes them for a part of it.",
    ]
    told: set[str] = set()
    for group in (GROUPS[name], CommonOptions, RedisOptions):
        for v in variables(group):
            if v.spec.env not in told:
                told.add(v.spec.env)
                default = render(v.spec.default)
                words = wanted(v.kind, v.spec) if default else expected(v.kind, v.spec)
                lines += ["", f"# {v.spec.help}", f"# Expected: {words}", f"#{v.spec.env}={default}"]
    return "\n".join(lines)
