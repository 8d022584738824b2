"""Project: a Docker Compose project whose services are measured one after another.

Run as a script, it is one service in the foreground: it starts the container, prints its log, and removes it as soon as
it is told to end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.notation import did_you_mean, spelled
from loadgen.record.cell import TargetSpec
from loadgen.serving.compose import ONE_GPU, OTHERS, PORT, variable
from loadgen.serving.launch import API_KEY, Launch, option
from loadgen.serving.recipe import Device, Dtype, expectations, load_recipe, recipe_names

FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
PLACES = ("", "docker", "loadgen-compose/docker")
"""Where the project is, below the folder that the user names: in it, or as `loadgen compose` writes it."""
VARIANTS = {"simulated": "sim-", "cpu": "cpu-"}
"""Profile -> what the names of its services begin with, before the recipe's."""
ANSWER_S = 60.0
STOP_S = 10
"""How long a container may take to end before it is killed."""
PROGRESS_S = 30.0
_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")
_DEFAULT = {"float16", "bfloat16"}


class Service(msgspec.Struct, frozen=True):
    """One service that serves a recipe."""

    name: str
    recipe: str
    profiles: tuple[str, ...]

    @property
    def simulated(self) -> bool:
        return self.name.startswith(VARIANTS["simulated"])

    @property
    def device(self) -> Device:
        return "cpu" if self.simulated or self.name.startswith(VARIANTS["cpu"]) else "cuda"


class Project:
    """The compose project in a folder."""

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.folder = folder
        self._content = content

    @classmethod
    def found(cls, named: str | Path) -> Project:
        """The project in the folder, in its `docker`, or in `loadgen-compose/docker`. Raises UsageError without one."""
        base = Path(named).expanduser()
        paths = [base / place / name for place in PLACES for name in FILES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            make = "`loadgen compose --dir stack` writes one; then give --compose stack"
            raise UsageError(f"--compose {named}: there is no compose.yaml in that folder; {make}")
        try:
            content = yaml.safe_load(read_file(path).decode())
            services = content["services"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError) as error:
            raise UsageError(f"--compose {named}: {path} is not a compose file ({error})") from None
        if not isinstance(services, dict):
            raise UsageError(f"--compose {named}: {path} has no services")
        return cls(path.parent.resolve(), services)

    @cached_property
    def variables(self) -> dict[str, str]:
        """What Compose fills in: the environment, else the folder's `.env`."""
        return stack_variables(os.environ, self.folder)

    @cached_property
    def services(self) -> dict[str, Service]:
        """The services that serve a recipe, by name, in the file's order."""
        found = {}
        for name, fields in self._content.items():
            bare = next((name.removeprefix(part) for part in VARIANTS.values() if name.startswith(part)), name)
            if bare in recipe_names():
                profiles = fields.get("profiles") if isinstance(fields, dict) else None
                found[name] = Service(name, bare, tuple(self._filled(str(one)) for one in profiles or ()))
        return found

    def targets(self, asked: Sequence[str] = ()) -> list[TargetSpec]:
        """The services that are asked for by recipe or service, else those of COMPOSE_PROFILES, as targets.

        Raises UsageError for a name that is not a service, and for none.
        """
        profiles = self.profiles
        if asked:
            return self._alike([self._asked(entry.strip(), profiles) for entry in asked])
        chosen = self.of_profiles(profiles | ({OTHERS} if ONE_GPU in profiles else set()))
        if not chosen:
            active = f"COMPOSE_PROFILES={','.join(sorted(profiles))} names" if profiles else "COMPOSE_PROFILES names"
            raise UsageError(
                f"--compose {self.folder}: {active} no service that can be measured; name some, as in --serve "
                f"{','.join(list(self.services)[:2]) or 'fp16,awq'}, or set COMPOSE_PROFILES=simulated"
            )
        return self._alike(chosen)

    @property
    def profiles(self) -> set[str]:
        """Those of COMPOSE_PROFILES."""
        return {part.strip() for part in self.variables.get("COMPOSE_PROFILES", "").split(",")} - {""}

    def of_profiles(self, profiles: set[str]) -> list[Service]:
        """The services that `docker compose up` starts with these profiles."""
        return [one for one in self.services.values() if profiles.intersection(one.profiles)]

    @property
    def concurrency(self) -> str | None:
        """The batch sizes for which the KV cache was sized: CONCURRENCY in `.env`; None without."""
        return self.variables.get("CONCURRENCY") or None

    def _asked(self, entry: str, profiles: set[str]) -> Service:
        name, equals, checkpoint = entry.partition("=")
        prefix = next((part for profile, part in VARIANTS.items() if profile in profiles), "")
        service = self.services.get(spelled(f"{prefix}{name}", self.services)) or self.services.get(
            spelled(name, self.services)
        )
        if service is None:
            known = (
                f"{did_you_mean(name, self.services)}those that serve a recipe: {', '.join(self.services) or 'none'}"
            )
            raise UsageError(f"--serve {entry}: {self.folder} has no such service; {known}")
        if equals:
            where = f"write {variable(service.recipe)}_CHECKPOINT={checkpoint} into {self.folder}/.env"
            raise UsageError(f"--serve {entry}: with --compose the project names the checkpoints; {where}")
        return service

    def _alike(self, services: Sequence[Service]) -> list[TargetSpec]:
        """Their targets. Raises UsageError if they differ in what they run on."""
        for other in services[1:]:
            one = services[0]
            if (one.simulated, one.device) != (other.simulated, other.device):
                pair = f"{one.name} and {other.name}"
                raise UsageError(
                    f"--compose: {pair} cannot be compared, they run on different hardware; choose with --serve"
                )
        return [TargetSpec(name=one.recipe, precision=one.recipe, service=one.name) for one in services]

    def _filled(self, text: str) -> str:
        return _VARIABLE.sub(lambda found: self.variables.get(found[1]) or found[2] or "", text)

    @cached_property
    def program(self) -> tuple[str, ...]:
        """`docker compose`, else `docker-compose`. Raises UsageError without either, or without an engine here."""
        host = os.environ.get("DOCKER_HOST", "")
        if host and not host.startswith("unix://"):
            raise UsageError(
                f"--compose: DOCKER_HOST {host} is another machine's engine; run the sweep on that machine"
            )
        for words in (("docker", "compose"), ("docker-compose",)):
            if _ask([*words, "version", "--short"], self.folder)[0] == 0:
                return words
        how = "`loadgen doctor --mode docker` says what to install"
        raise UsageError(f"--compose: neither `docker compose` nor `docker-compose` works on this machine; {how}")

    @property
    def command(self) -> str:
        """The compose program as the user types it."""
        return f"cd {shlex.quote(str(self.folder))} && {' '.join(self.program)}"

    def running(self) -> list[str]:
        """The services of the project that run and serve a model. Raises UsageError when the engine does not answer."""
        status, said = _ask(
            ["docker", "ps", *_of_project(self.folder), "--format", f'{{{{.Label "{_SERVICE}"}}}}'], None
        )
        if status:
            raise UsageError(f"--compose: Docker does not answer ({_last(said)}); see `loadgen doctor --mode docker`")
        return sorted(set(said.split()) & set(self.services))

    def resolved(self, names: Sequence[str]) -> dict[str, Any]:
        """The named services as Compose resolves them. Raises UsageError, with its words, when it does not."""
        profiles = sorted({self.services[name].profiles[0] for name in names if self.services[name].profiles})
        environment = {**os.environ, "COMPOSE_PROFILES": ",".join(profiles)}
        status, said = _ask([*self.program, "config"], self.folder, environment, errors=False)
        if status:
            status, said = _ask([*self.program, "config"], self.folder, environment)
            raise UsageError(f"--compose {self.folder}: Compose does not accept the project: {_last(said)}")
        return cast(dict[str, Any], yaml.safe_load(said)["services"])

    def launch(self, spec: TargetSpec, resolved: Mapping[str, Any], key: str | None) -> Launch:
        """How the service is started, where it will listen on this machine, and what its log must show."""
        assert spec.service is not None
        service, fields = self.services[spec.service], resolved[spec.service]
        host, port = _published(fields.get("ports") or ())
        if port is None:
            raise UsageError(f"--compose: the service {service.name} publishes no port for its {PORT}; add one")
        words = _words(fields.get("command"))
        runner = (sys.executable, "-m", __name__, str(self.folder), service.name, *self.program)
        if service.simulated:
            return Launch(name=spec.name, precision=spec.precision, argv=("loadgen", *words), runner=runner, host=host,
                          port=port, simulated=True)  # fmt: skip
        recipe = load_recipe(spec.precision)
        argv = (*_words(fields.get("entrypoint"))[3:], *words)
        given = option(argv, "--dtype")
        dtype = cast(Dtype, given) if given in _DEFAULT else recipe.dtype
        environment = {str(name): str(value) for name, value in (fields.get("environment") or {}).items()}
        return Launch(
            name=spec.name,
            precision=spec.precision,
            argv=argv,
            runner=runner,
            env=environment | ({API_KEY: key} if key else {}),
            host=host,
            port=port,
            gpus=_gpus(fields),
            device=service.device,
            expect=expectations(recipe, dtype, option(argv, "--kv-cache-dtype")) if dtype else (),
            kernel=recipe.kernel,
            dtype=dtype,
            in_flight=bool(recipe.in_flight_args) and all(word in argv for word in recipe.in_flight_args),
        )

    def asks_for_key(self) -> bool:
        """Whether vLLM's servers ask for the key of a file that the project names."""
        named = self.variables.get("API_KEY_FILE")
        path = self.folder / Path(named).expanduser() if named else None
        return path is not None and path.is_file() and path.stat().st_size > 0


def stack_variables(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What Compose fills in: the environment, else `.env` of the project's folder."""
    try:
        lines = (folder / ".env").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs if name.strip()} | dict(environment)


def _words(command: str | Sequence[str] | None) -> list[str]:
    """A command as Compose v2 or docker-compose 1.29 prints it; a dollar sign is doubled."""
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command or ()]
    return [word.replace("$$", "$") for word in words]


def _published(ports: Sequence[Any]) -> tuple[str, int | None]:
    """The host's address and port for the server's own port."""
    for entry in ports:
        if isinstance(entry, dict):
            host, port, target = entry.get("host_ip"), entry.get("published"), entry.get("target")
        else:
            outside, _, target = str(entry).partition("/")[0].rpartition(":")
            host, _, port = outside.rpartition(":")
        if str(target) == str(PORT) and str(port or "").isdigit():
            bare = (host or "").strip("[]")
            return ("127.0.0.1" if bare in ("", "0.0.0.0", "::") else bare), int(str(port))
    return "", None


def _gpus(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The GPUs that a service's deployment reserves by name: an entry may hold several, with commas."""
    with contextlib.suppress(KeyError, TypeError):
        reserved = fields["deploy"]["resources"]["reservations"]["devices"]
        named = ",".join(str(one) for device in reserved for one in device.get("device_ids") or ())
        return tuple(name.strip() for name in named.split(",") if name.strip())
    return ()


def _last(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")


def _ask(
    command: Sequence[str], folder: Path | None, environment: Mapping[str, str] | None = None, *, errors: bool = True
) -> tuple[int, str]:
    """Exit status and output, with what it says on stderr unless it only warns there."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, timeout=ANSWER_S, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout


_SERVICE = "com.docker.compose.service"


def _of_project(folder: Path) -> list[str]:
    return ["--filter", f"label=com.docker.compose.project.working_dir={folder}"]


class _Told(Exception):
    """A signal came."""


def _tell(number: int, _: object) -> None:
    raise _Told(number)


def run_service(folder: Path, service: str, program: Sequence[str]) -> int:
    """The service in the foreground, in a fresh container; returns its exit status.

    SIGINT stops the container and gives it time to end, SIGTERM removes it at once. Nothing of it is left.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _tell)
    containers = ["docker", "ps", "--all", "--quiet", "--no-trunc", *_of_project(folder),
                  "--filter", f"label={_SERVICE}={service}"]  # fmt: skip
    container, log = "", None
    try:
        up = [*program, "up", "--detach", "--no-deps", "--force-recreate", service]
        if status := subprocess.run(up, cwd=folder, stderr=subprocess.STDOUT, check=False).returncode:
            return status
        container = _output(containers)
        pid = _output(["docker", "inspect", "--format", "{{.State.Pid}}", container])
        print(f"loadgen: container {container} of service {service}, process {pid}", flush=True)
        log = subprocess.Popen(["docker", "logs", "--follow", container], stderr=subprocess.STDOUT)
        return _ended(container)
    except _Told as told:
        with contextlib.suppress(_Told):
            if container and told.args == (signal.SIGINT,):
                _output(["docker", "stop", "-t", str(STOP_S), container])
        return 128 + int(told.args[0])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for left in _output(containers).split():
            _output(["docker", "rm", "--force", left])
        if log is not None:
            log.wait()


def _ended(container: str) -> int:
    """The container's exit status, once it has ended; until it is healthy, each step of its downloads is a line."""
    healthy, received = False, ""
    waiting = subprocess.Popen(["docker", "wait", container], stdout=subprocess.PIPE, text=True)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                said, _ = waiting.communicate(timeout=None if healthy else PROGRESS_S)
                return int(said) if said.strip().isdigit() else 1
            healthy = _output(["docker", "inspect", "--format", "{{.State.Health.Status}}", container]) != "starting"
            if not healthy:
                seen = _output(["docker", "stats", "--no-stream", "--format", "{{.NetIO}}", container])
                if seen != received:
                    received = seen
                    print(f"loadgen: network traffic of the container so far: {received}", flush=True)
    finally:
        waiting.kill()


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(run_service(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
