"""Pins and client certificates as rows: what is refused, what is published, exported and looked at, what never is."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from django.core.exceptions import ValidationError
from django.test import TestCase

from audit.models import OutboxEntry
from gateway import probes
from hoosh_site.exporting import export_text
from hoosh_site.importing import ImportFileError, Report, import_file
from providers import certificates, config, feed, publish, services, validation
from providers.models import ClientCertificate, Provider, ProviderProbe
from tests.providers.tls_server import Site, TlsServer, chain_of, in_days, key_of, pem_of, pin_of

pytestmark = pytest.mark.database

OTHER_PIN = pin_of(pem_of(trustme.CA()))
CLIENTS = trustme.CA()
VARIABLE = "HOOSH_BOX_CLIENT_KEY"


def provider(url: str = "https://127.0.0.1:9", **more: Any) -> Provider:
    return services.save_provider(Provider(name="box", kind="custom", base_url=url, **more), actor="t")


def leaf(name: str = "gateway-1", **more: Any) -> trustme.LeafCert:
    return CLIENTS.issue_cert(f"{name}@test", common_name=name, **more)


def give(row: Provider, which: trustme.LeafCert | None = None) -> trustme.LeafCert:
    """Store a client certificate."""
    which = which or leaf()
    services.set_client_certificate(row, chain_of(which), key_of(which), actor="t")
    return which


def secret_of(which: trustme.LeafCert) -> str:
    """A line of a private key as it is typed and as it is kept."""
    return key_of(which).splitlines()[1]


def published() -> config.ConfigDocument:
    publish.publish("t")
    found = publish.latest()
    assert found is not None
    return config.unpack(found[1])


@pytest.mark.parametrize(
    "text",
    [
        "x",
        OTHER_PIN[7:],
        OTHER_PIN.replace("sha256/", "sha256//"),
        OTHER_PIN.replace("sha256", "SHA256"),
        OTHER_PIN[:-1],
        OTHER_PIN[:-2] + "B=",
        "sha256/" + "a" * 64,
        f"{OTHER_PIN};{OTHER_PIN}",
        ",".join("sha256/" + f"{n:042d}A=" for n in range(validation.PINS_MAX + 1)),
    ],
)
def test_what_is_no_list_of_pins_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="pin"):
        validation.pins(text)


def test_pins_may_stand_one_per_line_or_behind_commas() -> None:
    second = pin_of(pem_of(trustme.CA()))
    for text in (f"{OTHER_PIN},{second}", f" {OTHER_PIN}\r\n{second}\n", f"{OTHER_PIN} , {second},{second}"):
        validation.pins(text)
        assert validation.split_pins(text) == (OTHER_PIN, second)


class RowsTest(TestCase):
    databases = "__all__"

    def test_pins_are_published_and_need_https(self) -> None:
        row = provider(pins=f"{OTHER_PIN}\r\n")
        assert row.pins == OTHER_PIN
        assert published().providers[0].pins == (OTHER_PIN,)
        for url in ("http://127.0.0.1:9", "unix:///run/x.sock"):
            row.base_url = url
            with pytest.raises(ValidationError, match="https"):
                services.save_provider(row, actor="t")
        Provider.objects.update(base_url="http://127.0.0.1:9")
        with pytest.raises(publish.PublishError, match=r"certificate pins: it needs a base URL with https://"):
            publish.publish("t")

    def test_certificate_and_key_reach_the_feed_sealed_and_nothing_else_has_the_key(self) -> None:
        row = provider()
        which = give(row)
        kept = published().providers[0]
        sealed = feed.secrets()
        assert list(sealed) == [kept.client_id]
        assert kept.client_id < 0
        assert dict(kept.sealed) == {kept.client_id: "client certificate"}
        pem = services.open_vault().open(sealed[kept.client_id], row.base_url)
        assert pem == certificates.client_pem(chain_of(which), key_of(which))
        assert kept.client_certificate == ClientCertificate.objects.get().fingerprint
        entries = [entry.action for entry in OutboxEntry.objects.all()]
        assert "client_certificate.created" in entries
        places = [
            config.encode(published()).decode(),
            export_text(),
            *(str(entry.__dict__) for entry in OutboxEntry.objects.all()),
            str(ClientCertificate.objects.get().__dict__),
            str(sealed),
        ]
        for text in places:
            for secret in (secret_of(which), certificates.key_of(pem).splitlines()[1], "PRIVATE KEY"):
                assert secret not in text
        for text in (places[0], *places[2:-2]):
            assert sealed[kept.client_id] not in text

    def test_a_client_certificate_that_could_not_be_used_is_refused_without_a_word_of_its_key(self) -> None:
        row = provider()
        good, other = leaf(), leaf("other")
        locked = serialization.load_pem_private_key(key_of(good).encode(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pw"),
        )
        cut = key_of(good)[:-60]
        for chain, key, field, words in (
            (chain_of(good), key_of(other), "client_key", "does not belong"),
            (chain_of(good), locked.decode(), "client_key", "passphrase"),
            (chain_of(good), cut, "client_key", "not a PEM private key"),
            (chain_of(good), "é", "client_key", "not a PEM private key"),
            (chain_of(good), "", "client_key", "Enter the private key"),
            (chain_of(good) + key_of(good), key_of(good), "client_chain", "private key"),
            ("rubbish", key_of(good), "client_chain", "PEM"),
            ("", key_of(good), "client_chain", "PEM"),
            (pem_of(CLIENTS) + chain_of(good), key_of(good), "client_key", "first certificate"),
        ):
            with pytest.raises(ValidationError) as caught:
                services.set_client_certificate(row, chain, key, actor="t")
            assert list(caught.value.message_dict) == [field]
            assert words in str(caught.value)
            assert secret_of(good) not in repr(caught.value) + repr(caught.value.__cause__)
        assert not ClientCertificate.objects.exists()
        row.base_url = "http://127.0.0.1:9"
        with pytest.raises(ValidationError, match="https"):
            services.set_client_certificate(row, chain_of(good), key_of(good), actor="t")

    def test_another_address_makes_it_unusable_and_nothing_is_connected_to(self) -> None:
        row = provider()
        give(row)
        row.base_url = "https://127.0.0.1:10"
        row = services.save_provider(row, actor="t")
        assert not ClientCertificate.objects.get().is_usable
        assert services.read_client_pem(Provider.objects.get()) is None
        assert published().providers[0].client_certificate
        found = probes.probe_provider(row.pk)
        assert "cannot be opened; save it again" in found.detail

    def test_a_renewed_certificate_for_the_same_key_needs_no_typing(self) -> None:
        row = provider()
        first = give(row)
        key = serialization.load_pem_private_key(key_of(first).encode(), None)
        renewed = _signed_again(first, key)
        services.set_client_certificate(row, renewed, "", actor="t")
        assert services.read_client_pem(Provider.objects.get()) == certificates.client_pem(renewed, key_of(first))
        with pytest.raises(ValidationError, match="does not belong"):
            services.set_client_certificate(row, chain_of(leaf()), "", actor="t")

    def test_removing_it_forgets_the_key(self) -> None:
        row = provider()
        give(row)
        services.remove_client_certificate(row, actor="t")
        services.remove_client_certificate(row, actor="t")
        assert feed.secrets() == {}
        assert published().providers[0].client_certificate == ""
        give(Provider.objects.get())
        services.delete_provider(Provider.objects.get(), actor="t")
        assert feed.secrets() == {}


def _signed_again(which: trustme.LeafCert, key: Any) -> str:
    """Another certificate, by the same authority, for a key that has one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    old = x509.load_pem_x509_certificate(which.cert_chain_pems[0].bytes())
    signer = serialization.load_pem_private_key(CLIENTS.private_key_pem.bytes(), None)
    builder = x509.CertificateBuilder(old.issuer, old.subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(in_days(-1)).not_valid_after(in_days(400))
    made = builder.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    return made.public_bytes(serialization.Encoding.PEM).decode()


class FileTest(TestCase):
    databases = "__all__"

    def setUp(self) -> None:
        directory = self.enterContext(tempfile.TemporaryDirectory())
        self.path = Path(directory) / "ours.toml"

    def load(self, text: str, **variables: str) -> Report:
        self.path.write_text(text, encoding="utf-8")
        with mock.patch.dict(os.environ, variables):
            return import_file(self.path, "t", adopt=True)

    def test_pins_and_certificate_come_back_from_an_exported_file_and_the_key_from_its_variable(self) -> None:
        which = give(provider(pins=OTHER_PIN))
        text, before = export_text(), published().providers[0]
        assert f'pins = ["{OTHER_PIN}"]' in text
        assert f'client_key = "${VARIABLE}"' in text
        assert "BEGIN CERTIFICATE" in text
        Provider.objects.all().delete()
        report = self.load(text, **{VARIABLE: key_of(which)})
        assert "client certificate “box” stored" in report.changes
        after = published().providers[0]
        assert (after.pins, after.client_certificate) == (before.pins, before.client_certificate)
        pem = services.read_client_pem(Provider.objects.get())
        assert pem == certificates.client_pem(chain_of(which), key_of(which))
        assert export_text() == text
        assert self.load(text, **{VARIABLE: key_of(which)}).changes == []

    def test_without_its_variable_the_stored_key_stays_and_a_new_one_is_missed(self) -> None:
        which = give(provider())
        text = export_text()
        report = self.load(text)
        assert "the variable of its client key is not set; the stored one stays in use" in str(report.warnings)
        assert services.read_client_pem(Provider.objects.get())
        Provider.objects.all().delete()
        report = self.load(text)
        assert "no certificate is shown until then" in str(report.warnings)
        assert services.read_client_pem(Provider.objects.get()) == ""
        self.load(text, **{VARIABLE: key_of(which)})
        other = leaf()
        with pytest.raises(ImportFileError, match="client_key: The key does not belong") as caught:
            self.load(text, **{VARIABLE: key_of(other)})
        assert secret_of(other) not in str(caught.value)

    def test_a_file_without_them_takes_both_away(self) -> None:
        give(provider(pins=OTHER_PIN))
        lines = export_text().split("\n")
        Provider.objects.update(managed_by="import")
        begin = next(n for n, line in enumerate(lines) if line.startswith("client_certificate"))
        end = next(n for n, line in enumerate(lines) if line.startswith("client_key"))
        assert begin < end
        kept = [line for n, line in enumerate(lines) if not begin <= n <= end and not line.startswith("pins")]
        report = self.load("\n".join(kept))
        assert "client certificate “box” removed" in report.changes
        row = Provider.objects.get()
        assert (row.pins, services.read_client_pem(row)) == ("", "")

    def test_half_of_a_client_certificate_and_bad_pins_are_refused_by_place(self) -> None:
        start = 'hoosh_configuration = 1\n[[provider]]\nname = "a"\nkind = "custom"\nbase_url = "https://127.0.0.1:9"\n'
        for line, place in (
            ('client_key = "$X"', "provider[1]: client_certificate and client_key"),
            ('client_certificate = "x"', "provider[1]: client_certificate and client_key"),
            ("client_certificate = 1\nclient_key = 2", "provider[1]: client_certificate and client_key"),
            ('pins = "x"', "provider[1].pins must be a list"),
            ('pins = ["x"]', "pins: “x” is not a pin"),
        ):
            with pytest.raises(ImportFileError) as caught:
                self.load(f"{start}{line}\n")
            assert place in str(caught.value)


class LookTest(TestCase):
    """What "Test connection" and the regular looks find out about certificates."""

    databases = "__all__"

    def look(self, server: TlsServer, site: Site, **more: Any) -> probes.Outcome:
        Provider.objects.all().delete()
        self.row = provider(server.url, ca_pem=site.ca_pem, **more)
        return probes.probe_provider(self.row.pk)

    def test_the_chain_seen_is_remembered_with_its_ends_and_pins(self) -> None:
        site = Site(days=20)
        with site.server() as server:
            assert self.look(server, site).models == ("small",)
        seen = ProviderProbe.objects.get().certificates
        assert seen["base_url"] == self.row.base_url
        assert [each["pin"] for each in seen["chain"]] == list(site.pins.values())
        assert seen["chain"][0]["name"] == "models.test"
        assert seen["chain"][0]["not_after"][:10] == f"{in_days(20):%Y-%m-%d}"
        assert not probes.probe_provider(self.row.pk).ok  # gone; what was seen stays
        assert ProviderProbe.objects.get().certificates == seen

    def test_a_wrong_pin_is_told_with_the_one_that_was_presented(self) -> None:
        site = Site()
        with site.server() as server:
            found = self.look(server, site, pins=OTHER_PIN)
            assert (found.ok, server.received) == (False, b"")
        assert f"it presented {site.pins['leaf']}." in found.detail
        assert ProviderProbe.objects.get().detail == found.detail
        assert ProviderProbe.objects.get().certificates["chain"][0]["pin"] == site.pins["leaf"]

    def test_what_is_wrong_with_a_certificate_is_said(self) -> None:
        site, over = Site(), Site(days=-1)
        over.leaf = over.middle.issue_cert("localhost", not_before=in_days(-9), not_after=in_days(-1))
        with over.server() as server:
            assert "not accepted: certificate has expired." in self.look(server, over).detail
            assert "not accepted: unable to get" in self.look(server, site).detail

    def test_a_demanded_client_certificate_is_said_and_then_shown(self) -> None:
        site = Site()
        for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with site.server(clients=CLIENTS, newest=newest) as server:
                assert "it wants a client certificate" in self.look(server, site).detail
                give(self.row)
                assert probes.probe_provider(self.row.pk).ok
                give(self.row, leaf("gateway-2"))
                assert probes.probe_provider(self.row.pk).ok
                assert server.shown == ["gateway-1", "gateway-2"]
