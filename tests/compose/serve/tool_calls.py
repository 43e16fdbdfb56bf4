"""Calls of the tools for agents by the protocol's own client."""

import json
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx

ACCOUNT = "anne:secret"


@asynccontextmanager
async def session(url: str, account: str = ACCOUNT):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    headers = {"Authorization": f"Bearer {account}"}
    async with (
        streamablehttp_client(f"{url}/mcp", headers=headers) as (read, write, _),
        ClientSession(read, write) as one,
    ):
        await one.initialize()
        yield one


def call(server: Any, tool: str, **arguments: Any) -> Any:
    """The result as JSON, or the text of the error."""

    async def ask():
        async with session(server[0]) as one:
            return await one.call_tool(tool, arguments)

    answer = anyio.run(ask)
    [content] = answer.content
    assert len(content.text) < 20_000, "no image passes through the conversation"
    return content.text if answer.isError else json.loads(content.text)


def fetched(image: dict[str, Any]) -> bytes:
    answer = httpx.get(image["url"], auth=tuple(ACCOUNT.split(":")))
    assert answer.status_code == 200
    return answer.content
