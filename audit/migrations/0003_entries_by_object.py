from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audit', '0002_the_log'),
    ]

    operations = [
        migrations.AddField(
            model_name='auditentry',
            name='object',
            field=models.CharField(blank=True, default='', max_length=100),
            preserve_default=False,
        ),
        migrations.AddIndex(
            model_name='auditentry',
            index=models.Index(
                condition=models.Q(('object', ''), _negated=True), fields=['object', 'seq'], name='audit_entry_object'
            ),
        ),
    ]
