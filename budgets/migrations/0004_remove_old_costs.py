from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('budgets', '0003_copy_costs'),
    ]

    operations = [
        migrations.RemoveField(model_name='usage', name='old_cost'),
    ]
