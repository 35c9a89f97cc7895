"""Every setting: its type, default, bounds and meaning, each written once.

The description beside a field is the only one there is: `transfer-sidecar config table`, the README and the comments of
`config check` are made from it. Units stand in the names (`_s` seconds, `_bytes` bytes). An empty string, path or list
means "not set". Secrets are `Secret` values: they never appear in a repr, an error or a log line, only `reveal()` gives
them; each can also be read from a file by the key `<name>_file`.

Loading, checking and the order of the sources are in `load`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct, field

NODE_ID_CHARS: Final = 48
NODE_ID_PATTERN: Final = rf"^[A-Za-z0-9_-]{{1,{NODE_ID_CHARS}}}$"  # the id is one token of a NATS subject
_LABEL: Final = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME_PATTERN: Final = rf"^(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*$"  # RFC 1123, in lower case as Kubernetes has it
_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB


class Secret:
    """A value that must not be seen. Equal to another by content; false when empty."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself: for the one place that sends or compares it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"

    __str__ = __repr__


class Owner(Struct, frozen=True):
    """Numeric user and group, written `uid:gid`."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


class Deletion(StrEnum):
    TRASH = "trash"
    REFUSE = "refuse"


class RuntimeKind(StrEnum):
    DOCKER = "docker"
    NONE = "none"


class StopPolicy(StrEnum):
    FAIL = "fail"
    KILL = "kill"


class Dialect(StrEnum):
    DOCUMENTED = "documented"
    DAEMON = "daemon"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class CommandAccess(StrEnum):
    TOKEN = "token"
    SUBJECT = "subject"
    OFF = "off"


class Provision(StrEnum):
    VERIFY = "verify"
    CREATE = "create"
    OFF = "off"


class StreamCare(StrEnum):
    VERIFY = "verify"
    CREATE = "create"


class Node(Struct, frozen=True, kw_only=True):
    """Who this node is, to the panel and to the bus."""

    id: Annotated[
        str,
        Meta(
            pattern=NODE_ID_PATTERN,
            description="Name of this node, unique among the nodes: 1 to 48 of `A-Z a-z 0-9 _ -`. Must be set, "
            "or made from `name`.",
        ),
    ] = ""
    name: Annotated[
        str,
        Meta(
            pattern=HOST_NAME_PATTERN,
            description="Name of the machine or the Kubernetes node, in lower case. Where `id` is empty it is made "
            "from this: dots become `_`, and of more than 48 characters the first 30, `__` and 16 digits of the "
            "SHA-256 are left.",
        ),
    ] = ""
    token_id: Annotated[
        str,
        Meta(
            description="Id of the node's token at the panel. Must be set where there is a panel.",
            extra={"from_file": True},  # a panel hands it out with the token, so it is kept with the token
        ),
    ] = ""
    token: Annotated[
        Secret,
        Meta(
            description="The node's token: callers present it, transfer tokens are signed with it, the panel is called "
            "with it. Must be set."
        ),
    ] = Secret()


class Api(Struct, frozen=True, kw_only=True):
    """Where this node listens."""

    host: Annotated[
        str, Meta(min_length=1, description="Address to listen on; `0.0.0.0` or `::` for all of the machine's.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")] = 8080
    tls_cert: Annotated[
        Path | None, Meta(description="Certificate chain (PEM). With `tls_key`: HTTPS; without: plain HTTP.")
    ] = None
    tls_key: Annotated[Path | None, Meta(description="Private key (PEM) of `tls_cert`.")] = None
    public_url: Annotated[
        str,
        Meta(
            description="Where others reach this node, such as `https://node-a.example.com:8080`: told in the bus's "
            "directory of nodes. Empty: not told."
        ),
    ] = ""
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(description="Origins that may open a WebSocket, besides the panel: `https://panel.example.com`, or `*`."),
    ] = ()
    metrics_token: Annotated[
        Secret,
        Meta(
            description="Bearer token for `/api/transfers/sidecar/metrics` and nothing else. Empty: the node's token "
            "is wanted there."
        ),
    ] = Secret()
    front: Annotated[
        bool,
        Meta(
            description="Beside a node daemon: stand on the node's public port and pass everything that is not the "
            "sidecar's own through to the daemon, so that no proxy is needed."
        ),
    ] = False


class Panel(Struct, frozen=True, kw_only=True):
    """The panel, which decides which node owns a server."""

    url: Annotated[
        str,
        Meta(
            description="The panel's address, such as `https://panel.example.com`. Empty: standalone, the "
            "destination's journal decides."
        ),
    ] = ""
    require_scope: Annotated[
        bool,
        Meta(
            description="Refuse transfer and WebSocket tokens without a `scope` claim. Older panels issue none; a "
            "claim that is there is always checked."
        ),
    ] = False
    call_timeout_s: Annotated[
        float, Meta(gt=0, le=300, description="Deadline of one call to the panel. Calls that matter are repeated.")
    ] = 15.0


class ServerOverride(Struct, frozen=True, kw_only=True):
    """One server that is not where the rules of its section would look for it."""

    volume: Annotated[
        Path | None, Meta(description="Directory of this server's files, instead of `<volumes>/<uuid>`.")
    ] = None
    container: Annotated[
        str, Meta(description="Name or id of this server's container, instead of the UUID or a label.")
    ] = ""


class Servers(Struct, frozen=True, kw_only=True):
    """The servers' files."""

    volumes: Annotated[
        Path,
        Meta(
            description="Directory with one volume per server, named by its UUID. Staging and trash are kept beside "
            "them, on the same filesystem."
        ),
    ] = Path("/var/lib/pterodactyl/volumes")
    owner: Annotated[
        Owner | None,
        Meta(
            description="`uid:gid` that received files are given, such as `988:988`. Empty: the user that the sidecar "
            "runs as."
        ),
    ] = None
    deletion: Annotated[
        Deletion,
        Meta(
            description="What `DELETE /api/servers/{server}` does: `trash` moves the volume aside for "
            "`transfer.retain_s`, `refuse` answers 409."
        ),
    ] = Deletion.TRASH
    backups: Annotated[
        Path | None,
        Meta(
            description="Directory of the servers' backups, `<backup's UUID>.tar.gz` each or below `<server's UUID>/`, "
            "such as `/var/lib/pelican/backups`: backups that a panel names travel from it, and arrive in it. Empty: "
            "they stay behind, and those that arrive are left out, unless the node daemon takes them."
        ),
    ] = None
    install_logs: Annotated[
        Path | None,
        Meta(
            description="Directory of installation logs, `<server's UUID>.log` or `<server's UUID>/install.log` each, "
            "such as `/var/log/pelican/install`: a server's own travels with it, and arrives in it. Empty: it stays "
            "behind, and one that arrives is left out, unless the node daemon takes it."
        ),
    ] = None
    named: dict[str, ServerOverride] = field(default_factory=dict)  # the tables [servers.<uuid>]


class NodeDaemon(Struct, frozen=True, kw_only=True):
    """A node daemon (Pterodactyl Wings, Pelican Wings, Calagopus wings) that runs the servers of this node."""

    url: Annotated[
        str,
        Meta(
            description="Its API on this machine, such as `http://127.0.0.1:8081`; it knows the same `node.token`. "
            "What kind it is, is found out. Empty: no daemon, the sidecar runs the servers itself."
        ),
    ] = ""
    hand_over_timeout_s: Annotated[
        float,
        Meta(
            ge=30,
            le=7200,
            description="How long the daemon may take to adopt an arrived server: it may pull an image and repeats its "
            "call to the panel for minutes.",
        ),
    ] = 900.0


class Containers(Struct, frozen=True, kw_only=True):
    """What runs the servers."""

    runtime: Annotated[
        RuntimeKind,
        Meta(description="`docker`: stop, create and start containers; `none`: only files are moved."),
    ] = RuntimeKind.DOCKER
    host: Annotated[
        str, Meta(description="The Docker engine: `unix:///path`, or `tcp://host:port` (protect it: it is root).")
    ] = "unix:///var/run/docker.sock"
    stop_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="How long a server may take to stop before the transfer is refused. Panels wait 15 s for the "
            "answer.",
        ),
    ] = 15.0
    stop_policy: Annotated[
        StopPolicy,
        Meta(description="After `stop_timeout_s`: `fail` refuses the transfer, `kill` kills the server and goes on."),
    ] = StopPolicy.FAIL
    restart_on_failure: Annotated[
        bool, Meta(description="Start a server again that ran before its transfer failed or was cancelled.")
    ] = True
    network: Annotated[
        str,
        Meta(
            description="Docker network of the containers that are created here. Empty: the engine's default network."
        ),
    ] = ""
    data_target: Annotated[
        str, Meta(pattern="^/.*$", description="Where the volume is mounted inside the containers.")
    ] = "/home/container"


class Transfer(Struct, frozen=True, kw_only=True):
    """How transfers are run."""

    progress_interval_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="Time between two progress lines and events.")
    ] = 5.0
    stall_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="A transfer of which no byte moves for this long has failed. There is no total limit.",
        ),
    ] = 60.0
    answer_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="How long the destination may take to answer after the last byte: it verifies, commits, and "
            "talks to the panel.",
        ),
    ] = 1800.0
    connect_timeout_s: Annotated[
        float, Meta(gt=0, le=300, description="Deadline for the connection to the destination, TLS included.")
    ] = 10.0
    max_outgoing: Annotated[int, Meta(ge=0, le=64, description="Transfers sent at once; further ones get 503.")] = 2
    max_incoming: Annotated[int, Meta(ge=0, le=64, description="Transfers received at once; further ones get 503.")] = 2
    gzip_level: Annotated[
        int,
        Meta(
            ge=0,
            le=9,
            description="0 stores, 1 is fast, 9 is small. What does not compress is stored at any level.",
        ),
    ] = 1
    shutdown_grace_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86400,
            description="How long running transfers may go on after SIGTERM, unless a second one comes. What is cut "
            "then is finished, or failed by the same rules, at the next start.",
        ),
    ] = 30.0
    retain_s: Annotated[
        int,
        Meta(ge=0, description="How long the volume of a server that left is kept in trash. 0: purged at once."),
    ] = 86400
    respond_async: Annotated[
        bool,
        Meta(
            description="Answer a transfer request with 202 before the server has stopped, as `Prefer: respond-async` "
            "does; a failed stop is then reported as status `failed`."
        ),
    ] = False
    allowed_destinations: Annotated[
        tuple[str, ...],
        Meta(
            description="Where servers may be sent: host names (`*.example.com`), networks (`10.0.0.0/8`) or origins "
            "(`https://node-*.example.com:8443`, `http://127.0.0.1:*`). Empty: anywhere. Link-local addresses are "
            "always refused."
        ),
    ] = ()


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on what strangers send."""

    max_json_bytes: Annotated[int, Meta(ge=1024, le=64 * _MIB, description="Body of a JSON request.")] = 64 * 1024
    max_header_bytes: Annotated[int, Meta(ge=1024, le=_MIB, description="Headers of a request.")] = 32 * 1024
    max_part_header_bytes: Annotated[int, Meta(ge=256, le=_MIB, description="Headers of one part of an upload.")] = (
        16 * 1024
    )
    max_parts: Annotated[int, Meta(ge=3, le=100_000, description="Parts of one upload.")] = 256
    max_entries: Annotated[int, Meta(ge=1, description="Files, directories and links in one archive.")] = 4_000_000
    max_directories: Annotated[
        int, Meta(ge=1, description="Directories in one archive; each costs some memory until the end.")
    ] = 200_000
    max_content_bytes: Annotated[
        int, Meta(ge=1, description="Size of all files in one archive, after decompression.")
    ] = 1024 * _GIB
    max_path_bytes: Annotated[
        int, Meta(ge=255, le=65536, description="Length of one path, or link target, in an archive.")
    ] = 16 * 1024
    max_depth: Annotated[int, Meta(ge=1, le=4096, description="Directories above one entry of an archive.")] = 256
    reserve_bytes: Annotated[int, Meta(ge=0, description="Disk space that a transfer must leave free.")] = 512 * _MIB
    reserve_inodes: Annotated[int, Meta(ge=0, description="Inodes that a transfer must leave free.")] = 1000
    max_multiplex_streams: Annotated[
        int,
        Meta(ge=0, le=64, description="Further requests over which a Calagopus source may deal out one server."),
    ] = 16
    max_connections: Annotated[int, Meta(ge=8, le=100_000, description="Open connections of all callers.")] = 512
    request_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="Time for the headers of a request, and for the body of a JSON request.")
    ] = 15.0
    max_websockets_per_server: Annotated[int, Meta(ge=1, le=10_000, description="Open WebSockets of one server.")] = 30
    max_websockets: Annotated[int, Meta(ge=1, le=100_000, description="Open WebSockets of all servers.")] = 256
    max_websocket_message_bytes: Annotated[
        int, Meta(ge=1024, le=_MIB, description="One message received on a WebSocket.")
    ] = 4096


class Nats(Struct, frozen=True, kw_only=True):
    """The bus on which events are published and commands are taken."""

    url: Annotated[
        str,
        Meta(
            description="NATS servers of one cluster, comma separated: `nats://host:4222`, or `tls://host:4222` (TLS "
            "before the first byte). Empty: no bus."
        ),
    ] = ""
    token: Annotated[Secret, Meta(description="Token for the NATS server.")] = Secret()
    user: Annotated[str, Meta(description="User at the NATS server, with `password`.")] = ""
    password: Annotated[Secret, Meta(description="Password of `user`.")] = Secret()
    creds: Annotated[Path | None, Meta(description="Credentials file (user JWT and seed).")] = None
    nkey_seed: Annotated[Secret, Meta(description="Seed of an nkey (`SU...`).")] = Secret()
    tls_ca: Annotated[
        Path | None, Meta(description="Certificates that sign the NATS server's. Empty: the system's.")
    ] = None
    tls_cert: Annotated[Path | None, Meta(description="Client certificate (PEM), with `tls_key`.")] = None
    tls_key: Annotated[Path | None, Meta(description="Private key (PEM) of `tls_cert`.")] = None
    root: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$",
            description="First part of every subject: events are on `<root>.v1.event.>`.",
        ),
    ] = "transfer"
    commands: Annotated[
        CommandAccess,
        Meta(
            description="What a command over the bus needs: `token`, the node's token or one made with it; `subject`, "
            "nothing but the broker's permission for this node's subjects; `off`, no commands are taken."
        ),
    ] = CommandAccess.TOKEN
    directory: Annotated[
        Provision,
        Meta(
            description="The bucket `<root>_nodes` of JetStream, in which nodes are found and two of one id are told "
            "apart: `verify`, it is made by others; `create`, it is made where it is missing; `off`, none."
        ),
    ] = Provision.VERIFY
    inbox_prefix: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)?$",
            description="What the subjects of answers to us begin with. Empty: `_INBOX_<node.id>`; for `watch` "
            "`_INBOX_<user>`, without a user `_INBOX`.",
        ),
    ] = ""
    jetstream: Annotated[
        bool,
        Meta(
            description="Events are kept by a stream of JetStream, and arrive at least once. `false`: core NATS, at "
            "most once; so it is too where the broker never had JetStream."
        ),
    ] = True
    stream: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The stream that keeps the events."),
    ] = "TRANSFER_EVENTS"
    manage_stream: Annotated[
        StreamCare,
        Meta(
            description="`verify`: the stream is made by others, and events wait in the outbox until it is there; "
            "`create`: it is made where it is missing. It is never changed or deleted."
        ),
    ] = StreamCare.VERIFY
    outbox_bytes: Annotated[
        int,
        Meta(
            ge=_MIB,
            description="Disk space in `state.dir` for events that wait for the broker. Above it progress is dropped, "
            "then log lines, statuses never.",
        ),
    ] = 64 * _MIB
    outbox_keep_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86400,
            description="How long events are kept that the broker has acknowledged: it may lose the last of them in a "
            "crash, and gets them again. Longer than its `sync_interval`.",
        ),
    ] = 600.0

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers of `url`, one by one; none where there is no bus."""
        return tuple(url.strip() for url in self.url.split(",") if url.strip())


class WebSocket(Struct, frozen=True, kw_only=True):
    """The WebSocket of a server."""

    dialects: Annotated[
        tuple[Dialect, ...],
        Meta(
            description="Event names that are sent: `documented` (`transfer.status`) and `daemon` (`transfer status`, "
            "as Wings does)."
        ),
    ] = (Dialect.DOCUMENTED, Dialect.DAEMON)


class State(Struct, frozen=True, kw_only=True):
    """What this node remembers."""

    dir: Annotated[
        Path,
        Meta(
            description="Directory of the journal. Losing it means forgetting unfinished transfers: what they had "
            "staged beside the volumes is then left where it is."
        ),
    ] = Path("/var/lib/transfer-sidecar")


class Log(Struct, frozen=True, kw_only=True):
    """Log lines, on standard error."""

    level: Annotated[LogLevel, Meta(description="`debug`, `info`, `warning` or `error`.")] = LogLevel.INFO
    format: Annotated[LogFormat, Meta(description="`text` for people, `json` for machines.")] = LogFormat.TEXT


class Settings(Struct, frozen=True, kw_only=True):
    """All sections. Frozen; made by `load`, or by hand in tests."""

    node: Node = field(default_factory=Node)
    api: Api = field(default_factory=Api)
    panel: Panel = field(default_factory=Panel)
    servers: Servers = field(default_factory=Servers)
    daemon: NodeDaemon = field(default_factory=NodeDaemon)
    containers: Containers = field(default_factory=Containers)
    transfer: Transfer = field(default_factory=Transfer)
    limits: Limits = field(default_factory=Limits)
    nats: Nats = field(default_factory=Nats)
    websocket: WebSocket = field(default_factory=WebSocket)
    state: State = field(default_factory=State)
    log: Log = field(default_factory=Log)
