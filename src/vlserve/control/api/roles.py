"""Which role each route of the app needs.

A route that is not in the table is the owner's alone, and a test visits every route of the app:
one that was forgotten fails it.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from fastapi import Request

from vlserve.control.api.act_limit import ActLimit
from vlserve.control.api.console.access import NoSession
from vlserve.control.api.threads import Threads
from vlserve.control.named_keys import Holder, Role
from vlserve.control.store.refusals import RefusalLog
from vlserve.errors import RoleMissing

HOLDER = "vlserve.holder"
"""Key of the ASGI scope under which Door keeps who calls."""

_OPEN = frozenset[Role]()
_READ, _RELEASE, _REGISTER, _OWNER = (frozenset({role}) for role in Role)
_TORCHSERVE_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
_BY_ROLES: Mapping[frozenset[Role], tuple[str, ...]] = {
    _OPEN: (
        "GET /docs",
        "GET /docs/oauth2-redirect",
        "GET /redoc",
        "GET /console/static/{name}",
        "GET /console/enter",
        "GET /console/login",
        "POST /console/login",
    ),
    _READ: (
        "GET /health",
        "GET /models",
        "GET /traffic",
        "GET /refusals",
        "GET /models/{model}",
        "GET /models/{model}/history",
        "GET /models/{model}/release",
        "GET /models/{model}/marks",
        "GET /models/{model}/capture",
        "GET /models/{model}/verdict",
        "POST /models/{model}/verdict/check",  # a question of who can read no body
        "POST /console-links",
        "GET /console/",
        "GET /console/register",
        "GET /console/load-tests",
        "GET /console/batch-jobs",
        "GET /console/models/{model}",
        "GET /console/models/{model}/rollout",
        "GET /console/models/{model}/tags",
        "GET /console/models/{model}/history",
        "GET /console/models/{model}/versions/{version}",
        "GET /console/models/{model}/pairs",
        "GET /console/models/{model}/input",
        "GET /console/models/{model}/try",
        "GET /console/live/now",
        "GET /console/live/models/{model}",
        "GET /console/live/models/{model}/rollout",
        "GET /torchserve/models",
        "GET /torchserve/models/{name}",
        "GET /torchserve/models/{name}/all",
        "GET /torchserve/models/{name}/{version}",
        "GET /torchserve/api-description",
        "OPTIONS /torchserve/models",
        "OPTIONS /torchserve/models/{rest:path}",
        "OPTIONS /torchserve/",
        "OPTIONS /torchserve",
        *(f"{method} /torchserve/{{rest:path}}" for method in _TORCHSERVE_METHODS),
    ),
    _RELEASE: (
        "POST /models/{model}/releases",
        "POST /models/{model}/release/{word}",
        "POST /models/{model}/rollback",
        "POST /models/{model}/observations",  # by which a version looks good or bad
        "POST /console/models/{model}/release",
        "POST /console/models/{model}/start",
        "POST /console/models/{model}/rollback",
        "POST /console/models/{model}/{word}",
        "POST /console/models/{model}/pairs",
        "POST /console/models/{model}/try",
        "PUT /torchserve/models/{name}/{version}/set-default",
    ),
    _REGISTER: (
        "POST /versions",
        "POST /models/{model}/versions/{version}/unload",
        "POST /console/versions",
        "PUT /torchserve/models/{name}",
        "PUT /torchserve/models/{name}/{version}",
        "DELETE /torchserve/models/{name}",
        "DELETE /torchserve/models/{name}/{version}",
    ),
    _REGISTER | _RELEASE: ("POST /torchserve/models",),  # a new name gets all traffic at once
    _OWNER: (
        "POST /models/{model}/versions/{version}/delete",  # for good
        "POST /models/{model}/capture",  # keeps what callers send
        "POST /models/{model}/capture/{word}",
        "POST /batch-jobs",  # names a folder of this machine
    ),
}
_ACTING = frozenset({Role.RELEASE, Role.REGISTER})
_UNLIMITED = (
    "POST /models/{model}/observations",  # of these two the ledger has nothing
    "POST /console/models/{model}/try",
    "POST /models/{model}/rollback",  # a way back follows an act that was counted
    "POST /console/models/{model}/rollback",
)
"""What a key may do however often it has acted; so may it abort."""
NEEDS: Mapping[str, frozenset[Role]] = {
    route: roles for roles, routes in _BY_ROLES.items() for route in routes
}
"""Method and path of a route -> the roles that it needs, each of them; none: it asks for no key."""


def roles_needed(method: str, path: str) -> frozenset[Role]:
    """Return the roles that a route needs. ``path``: its template."""
    return NEEDS.get(f"{method} {path}", _OWNER)


def role_check(threads: Threads, refusals: RefusalLog) -> Callable[[Request], Awaitable[None]]:
    """Return the dependency that refuses callers without the roles that a route needs, and has the
    history tell of it, and callers who act too often. RoleMissing, TooManyActs, NoSession."""

    acts = ActLimit()

    async def check(request: Request) -> None:
        holder: Holder | None = request.scope.get(HOLDER)
        path = request.scope["route"].path
        needs = roles_needed(request.method, path)
        call = f"{request.method} {path}"
        if holder is None and needs:
            raise NoSession  # of the console: to any other path Door lets nobody without a key
        if holder is None:
            return
        if needs <= holder.roles:
            goes_back = request.path_params.get("word") == "abort"
            if needs & _ACTING and call not in _UNLIMITED and not goes_back:
                acts.count(holder)
            return
        model = request.path_params.get("model", request.path_params.get("name", ""))
        words = " and ".join(role for role in Role if role in needs)
        await threads.look(partial(refusals.note, holder.name, call, words, model))
        raise RoleMissing(_why(holder, call, needs, words))

    return check


def holder_of(request: Request) -> Holder:
    """Return who calls a route that needs a key; Door has let him in."""
    holder: Holder = request.scope[HOLDER]
    return holder


def _why(holder: Holder, call: str, needs: frozenset[Role], words: str) -> str:
    roles = " and ".join(role for role in Role if role in holder.roles)
    if Role.OWNER in needs:
        return (
            f"{call} is for the owner's own key on the machine of the stack, and the key "
            f"{holder.name} has the role {roles}"
        )
    return (
        f"{call} needs the role {words}, and the key {holder.name} has {roles}: the stack's owner "
        f"makes another key, `vlserve keys add NAME --role {words.replace(' and ', ' --role ')}`"
    )
