from __future__ import annotations

import django.db.models.deletion
import providers.validation
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("providers", "0002_unknown_price_and_disconnect_cap")]

    operations = [
        migrations.AddField(
            model_name="provider",
            name="pins",
            field=models.TextField(
                blank=True,
                help_text="sha256/…, one per line: the server's certificate, or one above it, must have one of these "
                "keys.",
                validators=[providers.validation.pins],
                verbose_name="certificate pins",
            ),
        ),
        migrations.AddField(
            model_name="providerprobe",
            name="certificates",
            field=models.JSONField(
                blank=True,
                default=dict,
                help_text="The chain seen last: base_url, seen_at, chain of name, not_after, pin.",
            ),
        ),
        migrations.CreateModel(
            name="ClientCertificate",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("chain_pem", models.TextField(validators=[providers.validation.certificates])),
                ("fingerprint", models.CharField(help_text="SHA-256 of the first certificate, hex.", max_length=64)),
                ("ciphertext", models.TextField(editable=False)),
                ("bound_base_url", models.CharField(editable=False, max_length=500)),
                ("rotated_at", models.DateTimeField(editable=False)),
                (
                    "provider",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="client_certificate",
                        to="providers.provider",
                    ),
                ),
            ],
        ),
    ]
