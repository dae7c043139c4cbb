"""What usage rows cost, from decimal USD to whole pico-USD."""

from decimal import Decimal

from django.db import migrations

LIMIT_USD = 1_000_000  # of one row, as the ledger cuts them


def pico(amount):
    """Whole pico-USD. SQLite keeps decimals as floating point, whose shortest spelling is what was written there."""
    return int(round(Decimal(repr(amount)).scaleb(12)))


def copy_costs(apps, schema_editor):
    """Copy the costs. A row without a price is not one whose price is missing: there were no price lists before."""
    connection = schema_editor.connection
    in_pico = 'CAST(ROUND(old_cost * 1000000000000) AS BIGINT)'
    if connection.vendor == 'sqlite':
        connection.ensure_connection()
        connection.connection.create_function('hoosh_pico', 1, pico, deterministic=True)
        in_pico = 'hoosh_pico(old_cost)'
    schema_editor.execute(
        f'UPDATE budgets_usage SET cost_pico = CASE WHEN old_cost > {LIMIT_USD} THEN {LIMIT_USD * 10**12} '
        f'ELSE {in_pico} END, price_id = CASE WHEN price_id = 0 THEN -2 ELSE price_id END'
    )


class Migration(migrations.Migration):

    dependencies = [
        ('budgets', '0002_windows_and_money'),
    ]

    operations = [
        migrations.RunPython(copy_costs, migrations.RunPython.noop, hints={'model_name': 'usage'}),
    ]
