"""Views about money: what was spent, a new reporting period, and what a request would cost."""

from __future__ import annotations

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import orders
from gateway import plane
from gateway.api import cost_advice, cost_report, fields
from gateway.api.authentication import HasKey, IsOperator, caller_of
from gateway.api.cost_serializers import (
    CostsSerializer,
    EstimateRequest,
    EstimateSerializer,
    RecommendRequest,
    RecommendSerializer,
    ResetSerializer,
)
from gateway.api.serializers import ErrorSerializer
from gateway.api.views import ControlView
from gateway.errors import GatewayUnavailableError

_REFUSED = {
    400: OpenApiResponse(ErrorSerializer, "Something in the request is not valid; `param` names it."),
    401: OpenApiResponse(ErrorSerializer, "No usable API key."),
    403: OpenApiResponse(ErrorSerializer, "The key may not do this."),
}
_QUERY = [
    OpenApiParameter(
        "group_by",
        description=f"One to {cost_report.GROUPS_MAX} of {', '.join(cost_report.GROUPS)}, comma-separated.",
    ),
    OpenApiParameter("from", OpenApiTypes.DATE, description="First day, in UTC."),
    OpenApiParameter("to", OpenApiTypes.DATE, description="Last day, in UTC; it is included."),
    OpenApiParameter("period", enum=("current", "all"), description="The reporting period in force, or all."),
    OpenApiParameter("team", description="Name or id of a team; operators may name any."),
]


class CostsView(ControlView):
    """What was spent."""

    permission_classes = (HasKey,)

    @extend_schema(
        parameters=_QUERY, responses={200: CostsSerializer, 503: ErrorSerializer, **_REFUSED}, summary="What was spent"
    )
    def get(self, request: Request) -> Response:
        """A key sees its own team's costs, operators and staff who may view usage see all. One report at a time."""
        caller = caller_of(request)
        asked = cost_report.question(request.query_params, caller)
        with cost_report.turn():
            return Response(cost_report.answer(asked, caller))


class CostsResetView(ControlView):
    """A new reporting period. `wait_s` is how long the writer has to begin it."""

    permission_classes = (IsOperator,)
    wait_s = 5.0

    @extend_schema(
        request=None,
        responses={200: ResetSerializer, 503: ErrorSerializer, **_REFUSED},
        summary="Start a new reporting period",
    )
    def post(self, request: Request) -> Response:
        """Costs of the period in force begin at nothing again; nothing is deleted. Answers once it has begun."""
        control = plane.current
        if control is None or control.writer is None:
            raise GatewayUnavailableError("This process does not write the ledger.", code="no_control_plane")
        order = orders.place("period", {}, actor=caller_of(request).name, note="POST /v1/costs/reset")
        control.writer.run_jobs()
        if orders.wait(order, self.wait_s).state != order.State.DONE:
            raise GatewayUnavailableError(
                f"The order to start a new period is recorded (number {order.pk}) but not carried out yet. "
                "There is no need to repeat it.",
                code="reset_pending",
                should_retry=False,
            )
        return Response({"status": "reset", "period": cost_report.period_in_force()})


class CostEstimateView(ControlView):
    """The cost of a request before it is made."""

    permission_classes = (HasKey,)

    @extend_schema(
        request=EstimateRequest,
        responses={200: EstimateSerializer, 404: ErrorSerializer, **_REFUSED},
        summary="Estimate the cost of a request",
    )
    def post(self, request: Request) -> Response:
        """At the route that would be tried first, with the price in force now."""
        asked = fields.read(EstimateRequest, request.data)
        return Response(cost_advice.estimate(asked.pop("model"), caller_of(request).key, **asked))


class CostRecommendView(ControlView):
    """The cheapest model for a request."""

    permission_classes = (HasKey,)

    @extend_schema(
        request=RecommendRequest,
        responses={200: RecommendSerializer, 404: ErrorSerializer, **_REFUSED},
        summary="Recommend the cheapest model that can do it",
    )
    def post(self, request: Request) -> Response:
        """Among the models that routes name exactly, whose price is known and whose card says what they can."""
        return Response(cost_advice.recommend(fields.read(RecommendRequest, request.data), caller_of(request).key))
