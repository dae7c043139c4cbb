from __future__ import annotations

import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("providers", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="gatewaysettings",
            name="unknown_price",
            field=models.CharField(
                choices=[
                    ("refuse", "Refuse where a pool has a money limit"),
                    ("observe", "Let it through; it costs nothing and is counted as unpriced"),
                ],
                default="refuse",
                help_text="For models without a price row. Local providers are free unless a row prices them.",
                max_length=16,
                verbose_name="unknown price",
            ),
        ),
        migrations.AddField(
            model_name="route",
            name="disconnect_cap",
            field=models.PositiveIntegerField(
                default=1024,
                help_text="Output tokens read after the client left, at most; only where the policy is to read on for "
                "so many.",
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="tokens read on",
            ),
        ),
        migrations.AlterField(
            model_name="route",
            name="on_disconnect",
            field=models.CharField(
                choices=[
                    ("cancel", "Cancel the upstream call"),
                    ("drain", "Read the answer to its end"),
                    ("cap", "Read on for so many tokens, then cancel"),
                ],
                default="cancel",
                help_text="What happens upstream when the client leaves in mid-answer. What was read is charged.",
                max_length=16,
            ),
        ),
    ]
