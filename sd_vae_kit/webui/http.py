"""The HTTP API on the host's app, behind the same user and password as the host's own."""

from __future__ import annotations

from secrets import compare_digest
from typing import Any

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared

from sd_vae_kit.hosts.protocol import WebuiHost
from sd_vae_kit.web.api import PREFIX, make_router


def add(host: WebuiHost, app: Any) -> None:
    """Add the routes where the host serves its own API (`--api`, `--nowebui`); once per app."""
    wanted = getattr(shared.cmd_opts, "api", False) or getattr(shared.cmd_opts, "nowebui", False)
    if wanted and not any(getattr(route, "path", "").startswith(PREFIX) for route in app.routes):
        guards = _guards(getattr(shared.cmd_opts, "api_auth", None))
        app.include_router(make_router(host.api, guards))
        present = {getattr(route, "path", "") for route in app.routes}
        for path, endpoint in host.page.own_routes().items():
            if path not in present:
                app.add_api_route(path, endpoint, methods=["GET"], dependencies=guards)


def _guards(api_auth: str | None) -> list[Any]:
    """A check against `--api-auth user:password,user:password`; none where the host asks for none."""
    if not api_auth:
        return []
    allowed = dict(pair.strip().split(":", 1) for pair in api_auth.split(","))

    def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - FastAPI's way
        expected = allowed.get(credentials.username)
        given = credentials.password.encode()
        if expected is None or not compare_digest(given, expected.encode()):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    return [Depends(check)]
