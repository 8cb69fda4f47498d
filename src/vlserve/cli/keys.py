"""keys: named keys of the control service, for callers who are not the stack's owner."""

from typing import Annotated

import typer

from vlserve.cli.output import AsJson, literal, print_json, print_line, print_table, stderr
from vlserve.cli.parameters import Group, control_client, refuse_other_machine, stack_settings
from vlserve.control.named_keys import NamedKeys, Role

keys = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke named keys of the control service, each with roles.",
    rich_markup_mode="markdown",
)

Name = Annotated[
    str,
    typer.Argument(
        help="Name of the key, which stands in the history: lower-case letters, digits, ., - and _."
    ),
]
Roles = Annotated[
    list[Role],
    typer.Option(
        "--role",
        help="What the key may do, once or several times: read, release (move traffic), or "
        "register (archives). Each key may read.",
    ),
]


@keys.command()
def add(name: Name, role: Roles, as_json: AsJson = False) -> None:
    """Make a key and print it, once: the file of keys in model_store has only its hash.

    It works at once, and also while the stack is down.
    """
    if Role.OWNER in role:
        raise typer.BadParameter(
            "the owner's key is the file control.key alone: take read, release or register",
            param_hint="'--role'",
        )
    key = _named_keys().add(name, role)
    if as_json:
        print_json({"name": name, "key": key})
        return
    print_line(key)
    stderr.print(literal(f"the key of {name}; it is not shown again"))


@keys.command(name="list")
def list_keys(as_json: AsJson = False) -> None:
    """List the named keys, those that were revoked too; never a key itself."""
    records = _named_keys().listed()
    if as_json:
        print_json({"keys": [key.model_dump(mode="json", exclude={"sha256"}) for key in records]})
        return
    rows = [
        (key.name, ", ".join(key.roles), key.added_at[:19], (key.revoked_at or "")[:19])
        for key in records
    ]
    print_table(("NAME", "ROLES", "ADDED", "REVOKED"), rows)


@keys.command()
def revoke(name: Name, as_json: AsJson = False) -> None:
    """End a key: the control service refuses it from now on, and closes its console sessions."""
    _named_keys().revoke(name)
    if as_json:
        print_json({"revoked": name})
        return
    print_line(f"the key {name} is revoked")


@keys.command()
def refusals(as_json: AsJson = False) -> None:
    """List the calls that named keys were refused for their role."""
    with control_client() as control:
        records = control.refusals()
    if as_json:
        print_json({"refusals": records})
        return
    rows = [(r.key, r.call, r.needs, r.model, r.times, r.last_at[:19]) for r in records]
    print_table(("KEY", "CALL", "NEEDS", "MODEL", "TIMES", "LAST"), rows)


def _named_keys() -> NamedKeys:
    refuse_other_machine("keys")
    return NamedKeys(stack_settings().model_store)


def add_to(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys", rich_help_panel=Group.STACK)
