"""Certificates on the provider pages: ends, warnings, pins, and a client certificate whose key is never shown."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trustme

from audit.models import OutboxEntry
from providers import certificates, services
from providers.models import ClientCertificate, ConfigVersion, Provider, ProviderProbe
from tests.admin_case import AdminTestCase
from tests.providers.test_admin import provider_form
from tests.providers.tls_server import Site, TlsServer, chain_of, in_days, key_of, pem_of, pin_of

pytestmark = pytest.mark.database

CLIENTS = trustme.CA()
OTHER_PIN = pin_of(pem_of(trustme.CA()))
URL = "https://127.0.0.1:9"


def tls_form(url: str = URL, **more: Any) -> dict[str, Any]:
    """The fields a browser sends; text areas end their lines with CRLF."""
    areas = {"pins": "", "client_chain": "", "client_key": "", **more}
    return provider_form(
        name="box", kind="custom", base_url=url, **{name: text.replace("\n", "\r\n") for name, text in areas.items()}
    )


class CertificatePagesTest(AdminTestCase):
    def add(self, **more: Any) -> Provider:
        response = self.post("providers_provider_add", tls_form(**more))
        assert response.status_code == 302, self.errors(response)
        return Provider.objects.get()

    def change(self, **more: Any) -> Any:
        return self.post("providers_provider_change", tls_form(**more), Provider.objects.get().pk)

    def shown(self) -> str:
        return self.page("providers_provider_change", Provider.objects.get().pk)

    def pem(self) -> str | None:
        return services.read_client_pem(Provider.objects.get())

    def test_a_provider_is_added_with_everything_in_one_version_and_keeps_it(self) -> None:
        leaf = CLIENTS.issue_cert("gateway", common_name="gateway-1", not_after=in_days(90))
        chain, key = chain_of(leaf), key_of(leaf)
        second = pin_of(pem_of(trustme.CA()))
        self.add(ca_pem=pem_of(CLIENTS), pins=f"{OTHER_PIN}\n{second}", client_chain=chain, client_key=key)
        assert self.versions() == 1
        assert self.pem() == certificates.client_pem(chain, key)
        assert Provider.objects.get().pins == f"{OTHER_PIN},{second}"
        html = self.shown()
        assert f"{OTHER_PIN}\n{second}" in html
        assert "gateway-1" in html
        assert f"{in_days(90):%Y-%m-%d}" in html
        assert "blank keeps it" in html
        assert "A certificate ends soon" not in html
        sealed = ClientCertificate.objects.get().ciphertext
        self.change(ca_pem=pem_of(CLIENTS), pins=f"{OTHER_PIN}\n{second}", client_chain=chain)
        assert self.versions() == 1
        assert ClientCertificate.objects.get().ciphertext == sealed

    def test_the_key_is_on_no_page(self) -> None:
        leaf = CLIENTS.issue_cert("gateway")
        self.add(client_chain=chain_of(leaf), client_key=key_of(leaf))
        provider = Provider.objects.get()
        pages = [
            self.shown(),
            self.page("providers_provider_history", provider.pk),
            self.page("providers_provider_changelist"),
            self.page("providers_provider_found", provider.pk),
            self.page("providers_configversion_change", ConfigVersion.objects.get().pk),
            self.page("index"),
            *(self.page("audit_outboxentry_change", entry.pk) for entry in OutboxEntry.objects.all()),
        ]
        kept = self.pem()
        assert kept
        for html in pages:
            for secret in (key_of(leaf).splitlines()[1], certificates.key_of(kept).splitlines()[1]):
                assert secret not in html
            assert ClientCertificate.objects.get().ciphertext not in html

    def test_a_refused_form_sends_no_key_back_wherever_it_was_pasted(self) -> None:
        leaf = CLIENTS.issue_cert("gateway")
        chain, key = chain_of(leaf), key_of(leaf)
        for fields, words in (
            ({"client_chain": chain, "client_key": key, "pins": "x"}, "is not a pin"),
            ({"client_chain": chain + key, "client_key": key}, "private key"),
            ({"client_chain": chain + key[:-40]}, "private key"),
            ({"ca_pem": key}, "private key"),
            ({"client_key": key}, "Paste the certificate"),
            ({"client_chain": chain, "client_key": key_of(CLIENTS.issue_cert("x"))}, "does not belong"),
            ({"client_chain": chain}, "Enter the private key"),
            ({"client_chain": chain, "client_key": key, "url": "http://127.0.0.1:9"}, "https"),
            ({"pins": OTHER_PIN, "url": "http://127.0.0.1:9"}, "https"),
        ):
            response = self.post("providers_provider_add", tls_form(**fields))
            assert words in self.errors(response), fields
            assert key.splitlines()[1] not in self.clean_html(response), fields
        assert not Provider.objects.exists()

    def test_a_certificate_can_be_replaced_and_removed_and_another_address_asks_for_the_key(self) -> None:
        first, second = CLIENTS.issue_cert("one"), CLIENTS.issue_cert("two")
        self.add(client_chain=chain_of(first), client_key=key_of(first))
        self.change(client_chain=chain_of(second), client_key=key_of(second))
        assert self.pem() == certificates.client_pem(chain_of(second), key_of(second))
        assert self.versions() == 2
        self.change(url="https://127.0.0.1:10", client_chain=chain_of(second))
        assert self.pem() is None
        assert "must be typed again" in self.shown()
        self.change(url="https://127.0.0.1:10", client_chain=chain_of(second), client_key=key_of(second))
        assert self.pem()
        assert "must be typed again" not in self.shown()
        response = self.change(url="http://127.0.0.1:10", client_chain=chain_of(second))
        assert "https" in self.errors(response)
        self.change(url="https://127.0.0.1:10")
        assert self.pem() == ""
        assert not ClientCertificate.objects.exists()

    def test_one_who_may_only_look_sees_ends_and_pins_and_changes_nothing(self) -> None:
        leaf = CLIENTS.issue_cert("gateway", common_name="gateway-1", not_after=in_days(3.5))
        self.add(pins=OTHER_PIN, client_chain=chain_of(leaf), client_key=key_of(leaf))
        self.allow(self.bob, "view_provider")
        html = self.shown()
        assert "gateway-1" in html
        assert "3 days left" in html
        assert OTHER_PIN in html
        assert 'name="client_key"' not in html
        assert self.post("providers_provider_pin", {"pin": OTHER_PIN}, Provider.objects.get().pk).status_code == 403
        assert self.change().status_code == 403
        assert self.pem()


class SeenPagesTest(AdminTestCase):
    """Pages behind a look at a real TLS server."""

    def look(self, server: TlsServer, site: Site, **more: Any) -> Provider:
        Provider.objects.all().delete()
        row = Provider(name="box", kind="custom", base_url=server.url, ca_pem=site.ca_pem, **more)
        row = services.save_provider(row, actor="t")
        self.post("providers_provider_test", {}, row.pk)
        return row

    def test_ends_of_the_server_its_authorities_and_ours_are_shown_and_warned_about(self) -> None:
        for days, label in ((400, "models.test"), (29.5, "29 days left"), (0.5, "0 days left")):
            site = Site(days=days)
            with site.server() as server:
                row = self.look(server, site)
            html = self.page("providers_provider_change", row.pk)
            assert f"{in_days(days):%Y-%m-%d}" in html
            assert label in html
            assert "private CA" in html
            assert ("A certificate ends soon" in html) == (days < 30)
            assert ("a certificate ends soon" in self.page("providers_provider_changelist")) == (days < 30)
        stored = ProviderProbe.objects.get()
        stored.certificates["chain"][0]["not_after"] = in_days(-2).isoformat()
        stored.save(update_fields=["certificates"])
        html = self.page("providers_provider_change", row.pk)
        assert re.search(r'hoosh-badge bad">expired<', html)
        assert "A certificate has ended." in html
        assert "ends soon" not in html
        assert re.search(r'hoosh-badge bad">a certificate has ended<', self.page("providers_provider_changelist"))

    def test_the_certificate_seen_now_is_pinned_by_a_button_and_then_required(self) -> None:
        site = Site()
        with site.server() as server:
            row = self.look(server, site)
            html = self.page("providers_provider_found", row.pk)
            for pin in site.pins.values():
                assert f'name="pin" value="{pin}"' in html
            self.post("providers_provider_pin", {"pin": site.pins["leaf"]}, row.pk)
            assert Provider.objects.get().pins == site.pins["leaf"]
            assert "is pinned" in self.messages(None)
            self.post("providers_provider_pin", {"pin": OTHER_PIN}, row.pk)
            assert "not the one seen last" in self.messages(None)
            html = self.page("providers_provider_found", row.pk)
            assert f'name="pin" value="{site.pins["leaf"]}"' not in html
            assert 'hoosh-badge good">pinned<' in html
            self.post("providers_provider_test", {}, row.pk)
            assert ProviderProbe.objects.get().ok
        assert self.versions() == 1

    def test_a_pin_the_server_does_not_show_is_said(self) -> None:
        site = Site()
        with site.server() as server:
            row = self.look(server, site, pins=f"{site.pins['root']},{OTHER_PIN}")
            assert ProviderProbe.objects.get().ok
            assert "did not show every pinned key" in self.page("providers_provider_change", row.pk)
            row = self.look(server, site, pins=OTHER_PIN)
            found = self.page("providers_provider_found", row.pk)
            assert f"presented {site.pins['leaf']}" in found
            assert f'name="pin" value="{site.pins["leaf"]}"' in found

    def test_what_was_seen_at_another_address_is_neither_shown_nor_pinned(self) -> None:
        site = Site()
        with site.server() as server:
            row = self.look(server, site)
        row.base_url = URL
        services.save_provider(row, actor="t")
        assert "models.test" not in self.page("providers_provider_change", row.pk)
        self.post("providers_provider_pin", {"pin": site.pins["leaf"]}, row.pk)
        assert Provider.objects.get().pins == ""
