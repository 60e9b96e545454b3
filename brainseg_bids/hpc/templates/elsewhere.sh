#!/bin/bash
{% block resources %}{% endblock %}
cd {{ folder | quote }}
{% if tasks %}
{% include "tasks.sh" %}
{% endif %}
{% for line in prologue %}
{{ line }}
{% endfor %}
{% if tasks %}
mkdir -p {{ scratch }}
{% endif %}
exec {{ command | lines }}
