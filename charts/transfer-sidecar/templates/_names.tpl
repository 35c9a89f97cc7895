{{- define "sidecar.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- /* 52: the names of a StatefulSet's pods and of their Services have to fit into 63, too */ -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sidecar.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sidecar.labels" -}}
{{ include "sidecar.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* registry/repository:tag, or @digest. Arguments: a list of the image's values and the tag where they have none */ -}}
{{- define "sidecar.image" -}}
{{- $image := index . 0 -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (ne $image.registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default (index . 1) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "sidecar.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "sidecar.fullname" . -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- /* where things are: in dind everything is on one volume, which has the same path in both containers */ -}}
{{- define "sidecar.volumesPath" -}}
{{- ternary "/srv/transfer-sidecar/volumes" .Values.servers.volumes (eq .Values.mode "dind") -}}
{{- end -}}
{{- define "sidecar.statePath" -}}
{{- ternary "/srv/transfer-sidecar/state" "/var/lib/transfer-sidecar" (eq .Values.mode "dind") -}}
{{- end -}}

{{- define "sidecar.hasTls" -}}
{{- if or .Values.tls.existingSecret .Values.tls.hostDirectory -}}yes{{- end -}}
{{- end -}}

{{- define "sidecar.isBeside" -}}
{{- if and (eq .Values.mode "daemonset") .Values.beside.enabled -}}yes{{- end -}}
{{- end -}}

{{- define "sidecar.isOnHostNetwork" -}}
{{- if and (include "sidecar.isBeside" .) .Values.beside.hostNetwork -}}yes{{- end -}}
{{- end -}}

{{- define "sidecar.isRoot" -}}
{{- if and (include "sidecar.isBeside" .) .Values.beside.asRoot -}}yes{{- end -}}
{{- end -}}

{{- /* seconds from SIGTERM to SIGKILL: the transfers, then what is flushed and closed, then the engine with its servers */ -}}
{{- define "sidecar.graceNeeded" -}}
{{- $drain := dig "transfer" "shutdown_grace_s" 30 .Values.config | float64 | ceil | int -}}
{{- add $drain 30 (ternary (int .Values.dind.shutdownTimeoutSeconds) 0 (eq .Values.mode "dind")) -}}
{{- end -}}
{{- define "sidecar.grace" -}}
{{- $needed := include "sidecar.graceNeeded" . | int -}}
{{- $given := int .Values.terminationGracePeriodSeconds -}}
{{- if and $given (lt $given $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d would cut transfers that config.transfer.shutdown_grace_s lets end; at least %d is needed, or 0, which takes that" $given $needed) -}}
{{- end -}}
{{- max $given $needed -}}
{{- end -}}

{{- define "sidecar.busUrl" -}}
{{- if .Values.nats.enabled -}}
{{- printf "nats://%s-nats:4222" .Release.Name -}}
{{- else -}}
{{- .Values.bus.url -}}
{{- end -}}
{{- end -}}
