tasks=(
{% for task in tasks %}
{{ task | quote }}
{% endfor %}
)
read -ra participants <<< "${tasks[{{ index }}]}"
