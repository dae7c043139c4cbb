from __future__ import annotations

import django.core.validators
import providers.validation
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('providers', '0004_unsupported_params'),
    ]

    operations = [
        migrations.AddField(
            model_name='modelcard',
            name='display_name',
            field=models.CharField(blank=True, help_text="For people; blank = the model's own name.", max_length=100),
        ),
        migrations.AddField(
            model_name='modelcard',
            name='source',
            field=models.CharField(blank=True, editable=False, help_text='The list an imported card comes from; blank = your own.', max_length=64),
        ),
        migrations.AlterField(
            model_name='modelcard',
            name='capabilities',
            field=models.CharField(blank=True, help_text='Labels, comma-separated: tools, vision, …', max_length=256, validators=[providers.validation.labels]),
        ),
        migrations.AlterField(
            model_name='modelcard',
            name='context_tokens',
            field=models.PositiveIntegerField(blank=True, help_text='Prompt and answer together, at most. Told to clients and used for advice; not enforced.', null=True, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.AlterField(
            model_name='modelcard',
            name='max_output_tokens',
            field=models.PositiveIntegerField(blank=True, help_text='The longest answer; used where a request names no limit.', null=True, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.AlterField(
            model_name='modelcard',
            name='pattern',
            field=models.CharField(help_text="The model's name at the provider; * matches anything.", max_length=256, validators=[providers.validation.pattern]),
        ),
        migrations.AddConstraint(
            model_name='modelcard',
            constraint=models.UniqueConstraint(condition=models.Q(('source', '')), fields=('pattern',), name='one_own_card_per_pattern', violation_error_message='A card with this pattern already exists.'),
        ),
        migrations.AddConstraint(
            model_name='modelcard',
            constraint=models.UniqueConstraint(condition=models.Q(('source', ''), _negated=True), fields=('pattern',), name='one_imported_card_per_pattern'),
        ),
    ]
