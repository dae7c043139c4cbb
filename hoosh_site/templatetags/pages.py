"""What the lists of admin say about themselves: what their rows are, and what to do where there is none."""

from __future__ import annotations

from typing import NamedTuple

from django import template
from django.db.models.options import Options

register = template.Library()


class About(NamedTuple):
    """A list in words: what its rows are, and how the first one comes about."""

    rows: str
    first: str


_SEEN = "Nothing so far. It fills by itself while the gateway works."

ABOUT = {
    "providers.provider": About(
        "Servers that answer: a vendor's API, or one of your own. A route says which models go there.",
        "Add one: choose its kind, paste its API key if it wants one, then save and test the connection.",
    ),
    "providers.route": About(
        "Rules, lowest priority first: requests for models like the pattern may go to the provider.",
        "Without a route no model is found. Add a provider first; its page makes routes for the models it offers.",
    ),
    "providers.routingpolicy": About(
        "How the routes of some models are ordered (cheapest, fastest, by weight, …), and what to fall back to.",
        "None is needed: the strategy of the gateway settings holds for every model. Add one for models that differ.",
    ),
    "providers.privacypolicy": About(
        "What a request may carry out of the house. A team, or the gateway settings, names one of them.",
        "None: requests leave as they are. Add one, then choose it in a team or in the gateway settings.",
    ),
    "providers.datapattern": About(
        "What privacy policies look for beside the built-in patterns: numbers of badges, names of projects.",
        "None: only the built-in patterns are looked for.",
    ),
    "providers.modelcard": About(
        "What is known of a model: its context, its abilities. Routing leaves out models that cannot do what is asked.",
        "None of your own: what providers and the catalogue say counts.",
    ),
    "providers.gatewaysettings": About("What holds for the whole gateway.", ""),
    "providers.configversion": About(
        "Every configuration that was published. Open one to see what it changed, or to go back to it.",
        "Nothing was published so far. Saving a provider or a route does it.",
    ),
    "budgets.team": About(
        "Groups of people. A team owns agents; it may have a budget and a privacy policy of its own.",
        "Add one, then an agent in it, then a key for the agent.",
    ),
    "budgets.agent": About(
        "Apps and agents of teams. Each has keys of its own, so what it costs can be told apart.",
        "Add one for each app that asks the gateway, then make a key for it.",
    ),
    "budgets.apikey": About(
        "What apps sign in with. The text of a key is shown once, when it is made.",
        "Add one: choose the agent it is for and the pool it draws on, and copy it into the app.",
    ),
    "budgets.pool": About(
        "Budgets of tokens or money that keys draw on. Once one is used up it refuses, until it begins anew.",
        "Every key needs one. Add one without a limit to begin with.",
    ),
    "budgets.usage": About(
        "Every call of a provider that was charged, newest first. Choose a time to see how a request went.",
        "No request so far. Ask something in the playground, or with a key from an app.",
    ),
    "budgets.price": About(
        "What models cost, in USD per million tokens. A change is a new row; what was charged stays as it was.",
        "None: every request counts as nothing in the costs. Add one, or import a list with manage.py import_prices.",
    ),
    "budgets.anomaly": About(
        "Agents that spent far more than they used to, or asked the same again and again.",
        "Nothing was noticed. What is looked for is set on the page of each agent.",
    ),
    "budgets.poolalert": About("Shares of a budget that were reached, each told once per window.", _SEEN),
    "budgets.poolwindow": About("The balances of pools: one row for each pool, window and unit.", _SEEN),
    "budgets.ledgerentry": About(
        "Changes of balances that are no usage: corrections, transfers, rests carried over.", _SEEN
    ),
    "budgets.ledgerorder": About(
        "Corrections and transfers that somebody asked for, and what came of them.",
        "None. They are made on the page of a pool.",
    ),
    "budgets.lease": About("What each worker may spend of a balance before it asks again.", _SEEN),
    "budgets.reservation": About(
        "Tokens that callers set aside themselves, by POST /v1/tokens/reserve.", "None is set aside."
    ),
    "budgets.warmquestion": About(
        "Questions whose answers are kept before anybody asks them.",
        "None. Add one for a question that is asked often, on a route that keeps answers.",
    ),
    "events.event": About("What happened, newest first. Webhooks are told the same.", _SEEN),
    "events.webhook": About(
        "Addresses that are told of events: a messenger, an alarm, a program of yours.",
        "None. Add one to be told of budgets that run out and providers that are down.",
    ),
    "audit.auditentry": About("Who did what, newest first, in a log whose entries cannot be changed unnoticed.", _SEEN),
    "audit.outboxentry": About(
        "Entries on their way into the audit log, usually for less than a second.",
        "None waits: all of it is in the log.",
    ),
    "auth.user": About("Who may sign in. Roles are groups: put people into one, and tick staff status.", ""),
    "auth.group": About(
        "Roles: what their members may see and change.", "None. manage.py setup_roles makes the usual four."
    ),
    "people.teamlead": About(
        "Who looks after a team's keys on a page of their own, with or without access to admin.",
        "None. Add one where a team shall make its keys itself.",
    ),
    "people.secondfactor": About(
        "Whose sign-in takes a code of an authenticator app. Deleting a row lets them sign in without.",
        "Nobody has set one up. Everybody can, by Second factor in the head of the page.",
    ),
    "people.signinfailure": About(
        "Names and addresses with failed sign-ins of late. Deleting a row lets them try again at once.", "None of late."
    ),
    "people.externalidentity": About(
        "Users as the identity provider knows them; made at their first sign-in by it.",
        "None. Sign-in by an identity provider is set up with HOOSH_OIDC_ISSUER.",
    ),
}


@register.simple_tag
def about_list(options: Options) -> About | None:  # type: ignore[type-arg]  # not subscriptable when run
    """What the list of this model is about; None where nothing is written."""
    return ABOUT.get(options.label_lower)
