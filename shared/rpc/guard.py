"""Authentication, permissions and limits before each call, the audit after it. Connects gRPC with `shared.security`."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Gauge

from shared.caller import EVERYBODY, Caller, Tenant, calling
from shared.config import Access, RpcSettings, ServerSettings
from shared.errors import PermissionDenied, SoftPromptError, Unimplemented
from shared.log import bound_fields
from shared.rpc.errors import status_of
from shared.rpc.tenant_metrics import OTHER, ObjectiveCollector, TenantLabels
from shared.security import audit
from shared.security.authenticator import Authenticator, Credentials
from shared.security.callers_file import CallersFile
from shared.security.methods import RULES, MethodRule, prompt_of
from shared.security.oidc import OidcConfig, OidcVerifier
from shared.security.quotas import Charges, Quotas
from shared.security.shared_limits import SharedLimits

HEALTH_SERVICE = "grpc.health.v1.Health"
HEALTH_WATCH = f"/{HEALTH_SERVICE}/Watch"
RELAY_SERVICE = "prompttuning.v1.RelayService"
"""Open to all: each call that it carries is checked."""
REFLECTION_SERVICES = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
_ANY_ROLE = MethodRule(frozenset())
_UNCHECKED = Caller("unchecked", frozenset())


class AdmittedCall:
    """One admitted call: checks its messages, charges its costs, and collects fields about it for log and audit."""

    def __init__(
        self, caller: Caller, rule: MethodRule, charges: Charges | None, shared_limits: SharedLimits | None = None
    ) -> None:
        self.caller, self._rule, self._charges, self._shared_limits = caller, rule, charges, shared_limits
        self.about: dict[str, str] = {}
        self._has_answered = False

    def received(self, request: Any) -> None:
        """Check and charge a request. Raises PermissionDenied, or Overloaded if it stores more than the caller may."""
        if not self.about:
            self.about.update((key, value) for key, value in self._rule.about(request).items() if value)
        self._rule.check(self.caller, request)
        if self._charges is not None:
            self._charges.check_bytes(self._rule.announced_bytes(request))
            self._charges.charge_bytes(self._rule.stored_bytes(request))

    def sent(self, response: Any) -> None:
        """Charge a response's tokens; the first response also adds fields about the call."""
        if not self._has_answered:
            self._has_answered = True
            self.about.update((key, value) for key, value in self._rule.made(response).items() if value)
        if self._charges is not None and (tokens := self._rule.tokens(response)):
            self._charges.charge_tokens(tokens)
            if self._shared_limits is not None:
                self._shared_limits.charge_tokens(self.caller, tokens)


class Guard:
    """Admits or refuses calls: health and reflection by their settings, other methods by the table of methods.

    Methods that are not in the table are refused to all callers.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        health: Access = "everyone",
        reflection: Access = "callers",
        shared_limits: SharedLimits | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._quotas, self._shared_limits = Quotas(), shared_limits
        self._access: dict[str, Access] = {
            HEALTH_SERVICE: health,
            RELAY_SERVICE: "everyone",
            **dict.fromkeys(REFLECTION_SERVICES, reflection),
        }

    @property
    def asks(self) -> bool:
        """Whether callers must authenticate."""
        return self._authenticator.asks

    def tenants(self) -> Mapping[str, Tenant]:
        """Tenants of the current callers file by name; empty without one. Call it in the event loop's thread."""
        return self._authenticator.tenants

    def labels_of(self, caller: Caller | None, prompt: str) -> TenantLabels | None:
        """Labels of a call in the metrics. `caller` None: it was not identified. `prompt`: a reference, or empty.

        None for a router, which doesn't know tenants.
        """
        name = OTHER if caller is None else caller.tenant.name
        return TenantLabels(name if name in self.tenants() else OTHER, self._authenticator.class_of(prompt_of(prompt)))

    @asynccontextmanager
    async def admitted(
        self, method: str, context: Any, identified: Callable[[Caller], object] = lambda caller: None
    ) -> AsyncIterator[AdmittedCall]:
        """Admit a call for the `async with` block. Raises Unauthenticated, PermissionDenied or Overloaded.

        `identified` gets the caller before its permissions and limits are checked. Refused calls are audited, too.
        """
        access = self._access.get(method.split("/")[1])
        if access is not None:
            yield await self._infrastructure(access, method, context)
            return
        rule = RULES.get(method)
        caller, about, result = Caller("unknown", frozenset()), dict[str, str](), "OK"
        try:
            caller = await self._authenticator.identify(_credentials(context))
            identified(caller)
            if rule is None or not caller.has_role(*rule.roles):
                raise PermissionDenied(
                    f"{caller.name} may not call {method.rpartition('/')[2]}{_wanted(rule)}", caller=caller.name
                )
            with self._quotas.taken(caller) as charges, calling(caller):
                if self._shared_limits is not None:
                    await self._shared_limits.begin(caller)
                admission = AdmittedCall(caller, rule, charges, self._shared_limits)
                about = admission.about
                yield admission
        except BaseException as error:
            result = _result(error)
            raise
        finally:
            if rule is None or rule.audited:
                _audit(method, result, caller, about, context)

    async def close(self) -> None:
        """Disconnect from the storage of shared limits."""
        if self._shared_limits is not None:
            await self._shared_limits.close()

    async def _infrastructure(self, access: Access, method: str, context: Any) -> AdmittedCall:
        if access == "off":
            raise Unimplemented("disabled on this server")
        if access == "everyone":
            return AdmittedCall(EVERYBODY, _ANY_ROLE, None)
        try:
            return AdmittedCall(await self._authenticator.identify(_credentials(context)), _ANY_ROLE, None)
        except SoftPromptError as error:
            if method != HEALTH_WATCH:
                raise
            # gRPC clients watch health without their token. If refused, they would call no replica; if the server has
            # no health service, they call all replicas.
            raise Unimplemented("health is available only to authenticated callers") from error


class PassingGuard(Guard):
    """Admits every call without a check. A router uses it, because replicas check the calls that it passes on."""

    def labels_of(self, caller: Caller | None, prompt: str) -> TenantLabels | None:
        """None: only replicas know tenants."""
        return None

    @asynccontextmanager
    async def admitted(
        self, method: str, context: Any, identified: Callable[[Caller], object] = lambda caller: None
    ) -> AsyncIterator[AdmittedCall]:
        """As `Guard.admitted`; refuses only what the settings turn off."""
        access = self._access.get(method.split("/")[1])
        yield (
            AdmittedCall(_UNCHECKED, _ANY_ROLE, None)
            if access is None
            else await self._infrastructure(access, method, context)
        )


def guard_of(settings: RpcSettings, metrics: CollectorRegistry | None) -> Guard:
    """The guard that the settings describe; a PassingGuard for settings without callers. Raises ConfigError for an
    invalid callers file or storage of limits.
    """
    if not isinstance(settings, ServerSettings):
        return PassingGuard(Authenticator(None, None), settings.health_access, settings.reflection_access)
    callers = CallersFile(settings.callers_file) if settings.callers_file else None
    if callers is not None:
        about = "1 while the newest version of the callers file is in use, 0 while the file is invalid or missing."
        Gauge("softprompt_callers_file_current", about, registry=metrics).set_function(callers.is_current)
    oidc = None
    if settings.oidc_issuer:
        config = OidcConfig(
            settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks_url, settings.oidc_groups_claim
        )
        oidc = OidcVerifier(config)
    authenticator = Authenticator(callers, oidc)
    if metrics is not None:
        metrics.register(ObjectiveCollector(lambda: authenticator.classes))
    shared_limits = SharedLimits(settings.limits_storage, metrics) if settings.limits_storage else None
    return Guard(authenticator, settings.health_access, settings.reflection_access, shared_limits)


def _wanted(rule: MethodRule | None) -> str:
    return "" if rule is None else f": it requires one of the roles {', '.join(sorted(rule.roles))}"


def _result(error: BaseException) -> str:
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else code_pb2.Code.Name(status_of(error).code)


def _audit(method: str, result: str, caller: Caller, about: dict[str, str], context: Any) -> None:
    fields = {
        "caller": caller.name,
        "tenant": caller.tenant.name,
        "identified_by": caller.identified_by,
        "peer": context.peer(),
        **about,
    }
    audit.record(method.rpartition(".")[2], result, {"request_id": bound_fields().get("request_id", ""), **fields})


def _credentials(context: Any) -> Credentials:
    authorization = tuple(
        value if isinstance(value, str) else ""
        for key, value in context.invocation_metadata() or ()
        if key == "authorization"
    )
    return Credentials(authorization, _certificate_names(context.auth_context()), address_of(context.peer()))


def _certificate_names(auth_context: dict[str, Sequence[bytes]]) -> tuple[str, ...]:
    names = [*auth_context.get("x509_subject_alternative_name", ()), *auth_context.get("x509_common_name", ())]
    return tuple(dict.fromkeys(name.decode(errors="replace") for name in names))


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer: `ipv4:10.0.0.7:1234` -> `10.0.0.7`.

    For IPv6 it is the /64 network, since one subscriber can use all addresses in it.
    """
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    if kind != "ipv6":
        return host or peer
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host
