"""Paths of control that are not pages. The workers answer inference, models and health from memory before this."""

from __future__ import annotations

from django.urls import path, re_path

from gateway.api import audit, backends, cache, costs, events, queue, schema, tokens, views

__all__ = ["schema", "urlpatterns"]  # importing `schema` is what makes the key known to the API's description

urlpatterns = [
    path("v1/health/providers", views.ProvidersHealthView.as_view(), name="providers-health"),
    path("v1/health/heartbeat", views.HeartbeatView.as_view(), name="heartbeat"),
    path("v1/admin/reload", views.ReloadView.as_view(), name="reload"),
    path("v1/requests/<str:request_id>", views.RequestView.as_view(), name="request"),
    path("v1/events", events.EventsView.as_view(), name="events"),
    path("v1/events/recent", events.RecentView.as_view(), name="events-recent"),
    path("v1/tokens/check", tokens.CheckView.as_view(), name="tokens-check"),
    path("v1/tokens/reserve", tokens.ReserveView.as_view(), name="tokens-reserve"),
    path("v1/tokens/report", tokens.ReportView.as_view(), name="tokens-report"),
    path("v1/tokens/pools", tokens.PoolsView.as_view(), name="tokens-pools"),
    path("v1/costs", costs.CostsView.as_view(), name="costs"),
    path("v1/costs/reset", costs.CostsResetView.as_view(), name="costs-reset"),
    path("v1/cost/estimate", costs.CostEstimateView.as_view(), name="cost-estimate"),
    path("v1/cost/recommend", costs.CostRecommendView.as_view(), name="cost-recommend"),
    path("v1/models/pull", backends.PullView.as_view(), name="models-pull"),
    path("v1/models/delete", backends.DeleteView.as_view(), name="models-delete"),
    path("v1/training/status", backends.TrainingView.as_view(), name="training-status"),
    path("v1/catalog/sync", backends.CatalogSyncView.as_view(), name="catalog-sync"),
    path("v1/cache/stats", cache.CacheStatsView.as_view(), name="cache-stats"),
    path("v1/cache/purge", cache.CachePurgeView.as_view(), name="cache-purge"),
    path("v1/queue/status", queue.QueueStatusView.as_view(), name="queue-status"),
    path("v1/audit", audit.AuditView.as_view(), name="audit"),
    path("v1/audit/checkpoint", audit.CheckpointView.as_view(), name="audit-checkpoint"),
    path("v1/audit/proof/inclusion", audit.InclusionView.as_view(), name="audit-inclusion"),
    path("v1/audit/proof/consistency", audit.ConsistencyView.as_view(), name="audit-consistency"),
    path("api/schema/", views.SchemaView.as_view(), name="schema"),
    path("metrics", views.MetricsView.as_view(), name="metrics"),
    re_path(r"^v1(?:/.*)?$", views.UnknownPathView.as_view(), name="unknown"),
]
