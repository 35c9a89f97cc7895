{{- define "nats.selector" -}}
app.kubernetes.io/name: nats
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nats.labels" -}}
{{ include "nats.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* the id that the program makes from a host name (node.name) */ -}}
{{- define "nats.nodeId" -}}
{{- $flat := replace "." "_" . -}}
{{- if gt (len $flat) 48 -}}
{{- printf "%s__%s" (trunc 30 $flat) (sha256sum . | trunc 16) -}}
{{- else -}}
{{- $flat -}}
{{- end -}}
{{- end -}}

{{- /* the bucket in which nodes are found */ -}}
{{- define "nats.bucket" -}}
{{- replace "." "_" . }}_nodes
{{- end -}}

{{- /* What one node may do: speak as itself, hear what is asked of it, write its own entry of the directory, and make the
stream and the bucket where they are missing. */ -}}
{{- define "nats.nodeUser" -}}
{{- $id := include "nats.nodeId" .node -}}
{{- $bucket := include "nats.bucket" .root -}}
{ user: {{ .node | quote }}, password: {{ .password | quote }}, permissions: {
    publish: { allow: [
      "{{ .root }}.v1.event.{{ $id }}.>"
      "{{ .root }}.v1.command.{{ $id }}.self.>"
      "$KV.{{ $bucket }}.{{ $id }}"
      "$JS.API.STREAM.INFO.*"
      "$JS.API.STREAM.CREATE.TRANSFER_EVENTS"
      "$JS.API.STREAM.CREATE.KV_{{ $bucket }}"
      "$JS.API.STREAM.MSG.GET.KV_{{ $bucket }}"
      "$JS.API.DIRECT.GET.KV_{{ $bucket }}.>"
      "$JS.API.DIRECT.GET.TRANSFER_EVENTS.{{ .root }}.v1.event.{{ $id }}.>"
    ] }
    subscribe: { allow: [
      "{{ .root }}.v1.command.{{ $id }}.>"
      "{{ .root }}.v1.command._all.>"
      "$SRV.>"
      "_INBOX_{{ $id }}.>"
    ] }
    allow_responses: true
  } }
{{- end -}}

{{- /* Who looks on: all events, past and present, the directory of nodes, and what the nodes say of themselves. */ -}}
{{- define "nats.watchUser" -}}
{{- $bucket := include "nats.bucket" .root -}}
{ user: "watch", password: {{ .password | quote }}, permissions: {
    publish: { allow: [
      "$SRV.*"
      "$SRV.*.transfer-sidecar"
      "$SRV.*.transfer-sidecar.*"
      {{- range $stream := list "TRANSFER_EVENTS" (printf "KV_%s" $bucket) }}
      "$JS.API.STREAM.INFO.{{ $stream }}"
      "$JS.API.STREAM.MSG.GET.{{ $stream }}"
      "$JS.API.DIRECT.GET.{{ $stream }}"
      "$JS.API.DIRECT.GET.{{ $stream }}.>"
      "$JS.API.CONSUMER.CREATE.{{ $stream }}.>"
      "$JS.API.CONSUMER.INFO.{{ $stream }}.>"
      "$JS.API.CONSUMER.MSG.NEXT.{{ $stream }}.>"
      "$JS.ACK.{{ $stream }}.>"
      {{- end }}
    ] }
    subscribe: { allow: [
      "{{ .root }}.v1.event.>"
      "_INBOX_watch.>"
      "_INBOX.>"
    ] }
  } }
{{- end -}}
