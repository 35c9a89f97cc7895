{{- /* The configuration as TOML. helm's toToml writes whole numbers as floats, which the program refuses, rightly. */ -}}
{{- define "sidecar.toml" -}}
{{- $own := dict
  "api" (dict "host" .Values.listen.host "port" .Values.listen.port "tls_cert" "" "tls_key" "")
  "servers" (dict "volumes" (include "sidecar.volumesPath" .))
  "state" (dict "dir" (include "sidecar.statePath" .))
-}}
{{- if include "sidecar.hasTls" . -}}
{{- $cert := ternary "tls.crt" .Values.tls.hostCert (eq .Values.tls.hostDirectory "") -}}
{{- $key := ternary "tls.key" .Values.tls.hostKey (eq .Values.tls.hostDirectory "") -}}
{{- if .Values.tls.hostDirectory -}}
{{- /* the environment has them, because there the name of the node is known */ -}}
{{- $_ := set $own "api" (omit $own.api "tls_cert" "tls_key") -}}
{{- else -}}
{{- $_ := set $own.api "tls_cert" (printf "/run/transfer-sidecar/tls/%s" $cert) -}}
{{- $_ := set $own.api "tls_key" (printf "/run/transfer-sidecar/tls/%s" $key) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.mode "dind" -}}
{{- $_ := set $own "containers" (dict "host" "unix:///run/engine/docker.sock") -}}
{{- else -}}
{{- $_ := set $own "containers" (dict "host" "unix:///run/engine/docker.sock") -}}
{{- if .Values.servers.backups -}}{{- $_ := set $own.servers "backups" .Values.servers.backups -}}{{- end -}}
{{- if .Values.servers.installLogs -}}{{- $_ := set $own.servers "install_logs" .Values.servers.installLogs -}}{{- end -}}
{{- end -}}
{{- if include "sidecar.isBeside" . -}}
{{- $_ := set $own.api "front" .Values.beside.front -}}
{{- $_ := set $own "daemon" (dict "url" .Values.beside.url) -}}
{{- end -}}
{{- if include "sidecar.busUrl" . -}}
{{- $nats := dict "url" (include "sidecar.busUrl" .) -}}
{{- if .Values.bus.tlsSecret -}}
{{- $_ := set $nats "tls_ca" "/run/transfer-sidecar/bus-tls/ca.crt" -}}
{{- if .Values.bus.tlsClientCertificate -}}
{{- $_ := set $nats "tls_cert" "/run/transfer-sidecar/bus-tls/tls.crt" -}}
{{- $_ := set $nats "tls_key" "/run/transfer-sidecar/bus-tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.bus.auth "creds" -}}{{- $_ := set $nats "creds" "/run/transfer-sidecar/bus/creds" -}}{{- end -}}
{{- /* the server for trying things out is empty at first */ -}}
{{- range $name := list "directory" "manage_stream" -}}
{{- if and $.Values.nats.enabled (not (dig "nats" $name "" $.Values.config)) -}}{{- $_ := set $nats $name "create" -}}{{- end -}}
{{- end -}}
{{- $_ := set $own "nats" $nats -}}
{{- end -}}
{{- $given := dict -}}
{{- range $section, $settings := .Values.config -}}
{{- $set := dict -}}
{{- range $name, $value := $settings -}}
{{- /* an empty text is "not set", and would hide what a daemon's file says */ -}}
{{- if not (and (kindIs "string" $value) (eq (toString $value) "")) -}}{{- $_ := set $set $name $value -}}{{- end -}}
{{- end -}}
{{- if $set -}}{{- $_ := set $given $section $set -}}{{- end -}}
{{- end -}}
{{- $all := mergeOverwrite (deepCopy $given) $own -}}
{{- range $section := keys $all | sortAlpha }}
[{{ $section }}]
{{- $settings := get $all $section }}
{{- range $name := keys $settings | sortAlpha }}
{{- $value := get $settings $name }}
{{- if not (kindIs "map" $value) }}
{{ $name }} = {{ include "sidecar.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $name := keys $settings | sortAlpha }}
{{- $table := get $settings $name }}
{{- if kindIs "map" $table }}

[{{ $section }}.{{ $name }}]
{{- range $key := keys $table | sortAlpha }}
{{ $key }} = {{ include "sidecar.tomlValue" (get $table $key) }}
{{- end }}
{{- end }}
{{- end }}
{{ end }}
{{- end -}}

{{- define "sidecar.tomlValue" -}}
{{- if kindIs "float64" . -}}
{{- ternary (printf "%.0f" .) (toString .) (eq (floor .) .) -}}
{{- else -}}
{{- toRawJson . -}}
{{- end -}}
{{- end -}}
