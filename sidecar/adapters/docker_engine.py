"""The Docker engine, as the few calls that this project makes of it; blocking, for threads.

It exists so that errors are translated in one place and by one table, never by message text, and so that every call
has a deadline. The SDK's low-level client is used because it takes and gives the Engine API's own documents: what is
sent to `create` can be read beside the API's reference.

Source: Docker Engine API 1.41 to 1.51; the version is negotiated, because a pinned one is refused by older and newer
engines.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import docker
import docker.errors
import docker.utils
import requests
import urllib3
from docker.types.daemon import CancellableStream

from sidecar.errors import HostFailed

Document = dict[str, Any]  # a JSON object of the Engine API

PULL_STALL_S: Final = 300.0  # the engine says nothing while it unpacks a large layer
_WAIT_SLACK_S: Final = 1.0
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409  # a signal to a container that does not run
_MAX_SAID: Final = 300

_UNREACHABLE: Final = (
    docker.errors.DockerException,  # also: no socket, no permission, not a Docker engine
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Translate: an answer that is an error -> `engine.failed`; no answer -> `engine.unreachable`."""
    try:
        yield
    except docker.errors.APIError as error:
        status = error.response.status_code if error.response is not None else 0
        said = str(error.explanation or "")[:_MAX_SAID]
        raise HostFailed("engine.failed", f"the container engine refused to {what}: {said}", status=status) from error
    except _UNREACHABLE as error:
        raise HostFailed("engine.unreachable", f"the container engine did not {what}: {error}") from error


class _Client(docker.APIClient):
    """The SDK's client with the requests that it makes without a deadline or leaves open."""

    if TYPE_CHECKING:  # parts of the SDK's client that its stubs leave out

        def _url(self, path: str, *args: str) -> str: ...
        def _raise_for_status(self, response: requests.Response) -> None: ...
        def _get_raw_response_socket(self, response: requests.Response) -> Any: ...
        def _stream_helper(self, response: requests.Response, decode: bool = False) -> Iterator[Document]: ...
        def create_container_from_config(self, config: Any, name: Any = ..., platform: Any = ...) -> Any: ...
        def inspect_image(self, image: str) -> Document: ...

    def write_stdin(self, container: str, data: bytes, timeout_s: float) -> None:
        response = self.post(
            self._url("/containers/{0}/attach", container),
            params={"stdin": 1, "stream": 1},
            stream=True,
            headers={"Connection": "Upgrade", "Upgrade": "tcp"},
            timeout=timeout_s,
        )
        with closing(response):
            connection = self._get_raw_response_socket(response)
            getattr(connection, "_sock", connection).sendall(data)

    def pull_image(self, name: str, tag: str, stall_s: float) -> Iterator[Document]:
        response = self.post(
            self._url("/images/create"),
            params={"fromImage": name, "tag": tag},
            headers={},
            stream=True,
            timeout=(self.timeout, stall_s),
        )
        with closing(response):
            self._raise_for_status(response)
            yield from self._stream_helper(response, decode=True)

    def open_events(self, filters: Mapping[str, list[str]]) -> requests.Response:
        response = self.get(
            self._url("/events"),
            params={"filters": docker.utils.convert_filters(dict(filters))},
            stream=True,
            timeout=(self.timeout, None),
        )
        try:
            self._raise_for_status(response)
        except BaseException:
            response.close()
            raise
        return response

    def read_events(self, response: requests.Response) -> CancellableStream[Document]:
        return CancellableStream(self._stream_helper(response, decode=True), response)


def _probe(host: str) -> None:
    """Fail early where nobody listens on a Unix socket: the SDK would leave its own socket open."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect("/" + host.removeprefix("unix://").lstrip("/"))


class EventStream:
    """Events as they happen, until `close` (from any thread) or the engine goes away."""

    def __init__(self, client: _Client, filters: Mapping[str, list[str]]) -> None:
        with _asking("send events"):
            self._response = client.open_events(filters)
        self._stream = client.read_events(self._response)

    def __iter__(self) -> Iterator[Document]:
        with _asking("send events"):
            yield from self._stream

    def close(self) -> None:
        """Make a reader in another thread end."""
        with suppress(OSError, AttributeError, ValueError):  # its end was there first
            self._stream.close()

    def discard(self) -> None:
        """Give the connection back; for the reading thread."""
        self._response.close()


class DockerEngine:
    """Connects at the first call. Every method raises HostFailed (`engine.unreachable`, `engine.failed`)."""

    def __init__(self, host: str, *, call_timeout_s: float = 30.0, connections: int = 16) -> None:
        self.host = host
        self._call_timeout_s = call_timeout_s
        self._connections = connections
        self._client: _Client | None = None
        self._connecting = threading.Lock()

    def _api(self) -> _Client:
        with self._connecting:
            if self._client is None:
                with _asking("answer"):
                    _probe(self.host)
                    self._client = _Client(
                        self.host, timeout=max(1, round(self._call_timeout_s)), max_pool_size=self._connections
                    )
            return self._client

    def close(self) -> None:
        """Close the connections. A later call connects anew."""
        with self._connecting:
            if self._client is not None:
                self._client.close()
                self._client = None

    def ping(self) -> None:
        """Return when the engine answers."""
        api = self._api()
        with _asking("answer"):
            api.ping()

    def info(self) -> Document:
        """The engine about itself."""
        api = self._api()
        with _asking("tell about itself"):
            return api.info()

    def inspect(self, container: str) -> Document | None:
        """The whole document of a container, or None where there is none of that id or name.

        A name that is also a prefix of another container's id finds that one: compare what comes back.
        """
        api = self._api()
        with _asking("inspect a container"):
            try:
                document: Document = api.inspect_container(container)
            except docker.errors.NotFound:
                return None
            return document

    def containers(self) -> list[Document]:
        """All containers, stopped ones too, as the short documents of the list."""
        api = self._api()
        with _asking("list its containers"):
            rows: list[Document] = api.containers(all=True)
            return rows

    def set_restart_policy(self, container: str, policy: Mapping[str, Any]) -> None:
        api = self._api()
        with _asking("change a restart policy"):
            api.update_container(container, restart_policy=dict(policy))  # type: ignore[arg-type]  # as inspect gave it

    def signal(self, container: str, name: str) -> None:
        """Send a signal. A container that does not run or is gone is no error: look at it afterwards."""
        api = self._api()
        with _asking("send a signal"):
            try:
                api.kill(container, name)
            except docker.errors.APIError as error:
                if error.response is None or error.response.status_code not in (_NOT_FOUND, _CONFLICT):
                    raise

    def unpause(self, container: str) -> None:
        api = self._api()
        with _asking("unpause a container"):
            api.unpause(container)

    def write_stdin(self, container: str, data: bytes) -> None:
        """Write to the container's standard input, as somebody at its console would."""
        api = self._api()
        with _asking("write to a console"):
            api.write_stdin(container, data, self._call_timeout_s)

    def wait(self, container: str, timeout_s: float) -> None:
        """Wait for the container's end, at most so long. Says nothing about the outcome: inspect.

        The SDK reports a time-out as a broken connection, so the two cannot be told apart here.
        """
        api = self._api()
        with suppress(docker.errors.APIError, *_UNREACHABLE):
            api.wait(container, timeout=timeout_s + _WAIT_SLACK_S)  # type: ignore[arg-type]  # a float will do

    def start(self, container: str) -> None:
        """Started already is no error."""
        api = self._api()
        with _asking("start a container"):
            api.start(container)

    def create(self, name: str, document: Document) -> tuple[str, list[str]]:
        """Returns the new container's id and the engine's warnings about what it left out."""
        api = self._api()
        with _asking("create a container"):
            answer: Document = api.create_container_from_config(document, name)
            return str(answer["Id"]), [str(warning) for warning in answer.get("Warnings") or []]

    def remove(self, container: str) -> None:
        """Remove a stopped container and nothing else: not its volumes. Gone already is no error."""
        api = self._api()
        with _asking("remove a container"), suppress(docker.errors.NotFound):
            api.remove_container(container, v=False, force=False)

    def has_image(self, image: str) -> bool:
        api = self._api()
        with _asking("look for an image"):
            try:
                api.inspect_image(image)
            except docker.errors.NotFound:
                return False
            return True

    def pull(self, image: str, stall_s: float = PULL_STALL_S) -> None:
        """Pull an image; fails when the engine reports nothing for `stall_s`, without a limit on the whole."""
        api = self._api()
        name, tag = docker.utils.parse_repository_tag(image)
        with _asking("pull an image"):
            for step in api.pull_image(name, tag or "latest", stall_s):
                if "error" in step:
                    raise HostFailed("engine.failed", f"the image cannot be pulled: {str(step['error'])[:_MAX_SAID]}")

    def network(self, name: str) -> Document | None:
        """A network's document, or None where there is none of exactly that name."""
        api = self._api()
        with _asking("look for a network"):
            rows: list[Document] = api.networks(names=[name])
            return next((row for row in rows if row.get("Name") == name), None)

    def events(self, filters: Mapping[str, list[str]]) -> EventStream:
        """Events from now on."""
        return EventStream(self._api(), filters)
