{{- /* What the pods of both modes share. */ -}}

{{- define "sidecar.podSecurity" -}}
{{- if include "sidecar.isRoot" . }}
runAsNonRoot: false
runAsUser: 0
runAsGroup: 0
{{- else }}
runAsNonRoot: true
runAsUser: {{ int .Values.runAs.user }}
runAsGroup: {{ int .Values.runAs.group }}
{{- end }}
{{- $groups := list }}
{{- if and (eq .Values.mode "daemonset") (ne (toString .Values.docker.groupId) "") }}
{{- $groups = append $groups (int .Values.docker.groupId) }}
{{- end }}
{{- range .Values.runAs.supplementalGroups }}
{{- $groups = append $groups (int .) }}
{{- end }}
{{- with $groups }}
supplementalGroups: {{ uniq . | toJson }}
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sidecar.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
  {{- if include "sidecar.isRoot" . }}
  add: # to give received files to the daemon's user, and to read and replace what belongs to it
    - CHOWN
    - DAC_OVERRIDE
    - FOWNER
    {{- if lt (int .Values.listen.port) 1024 }}
    - NET_BIND_SERVICE
    {{- end }}
  {{- end }}
{{- end -}}

{{- define "sidecar.probe" -}}
{{- $root := index . 0 -}}
{{- $probe := index . 1 -}}
httpGet:
  path: {{ index . 2 }}
  port: api
  scheme: {{ ternary "HTTPS" "HTTP" (ne (include "sidecar.hasTls" $root) "") }}
  {{- if not (has $root.Values.listen.host (list "0.0.0.0" "::")) }}
  host: {{ $root.Values.listen.host | quote }}
  {{- end }}
periodSeconds: {{ int $probe.periodSeconds }}
timeoutSeconds: {{ int $probe.timeoutSeconds }}
failureThreshold: {{ int $probe.failureThreshold }}
{{- end -}}

{{- define "sidecar.container" -}}
name: transfer-sidecar
image: {{ include "sidecar.image" (list .Values.image .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
env: # the files too, so that commands in this container (resolve, config check) know them
  - name: SIDECAR_CONFIG
    value: /etc/transfer-sidecar/sidecar.toml
  {{- if include "sidecar.isBeside" . }}
  - name: SIDECAR_WINGS_CONFIG
    value: /etc/transfer-sidecar/daemon/config.yml
  {{- end }}
  - name: SIDECAR_NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: {{ ternary "metadata.name" "spec.nodeName" (eq .Values.mode "dind") }}
  {{- if .Values.node.existingSecret }}
  - name: SIDECAR_NODE_TOKEN_FILE
    value: /run/transfer-sidecar/node/token
  {{- if dig "panel" "url" "" .Values.config }}
  - name: SIDECAR_NODE_TOKEN_ID_FILE
    value: /run/transfer-sidecar/node/token-id
  {{- end }}
  {{- end }}
  {{- with .Values.listen.publicUrl }}
  - name: SIDECAR_API_PUBLIC_URL
    value: {{ . | quote }}
  {{- end }}
  {{- if .Values.tls.hostDirectory }}
  - name: SIDECAR_API_TLS_CERT
    value: {{ printf "/run/transfer-sidecar/tls/%s" .Values.tls.hostCert | quote }}
  - name: SIDECAR_API_TLS_KEY
    value: {{ printf "/run/transfer-sidecar/tls/%s" .Values.tls.hostKey | quote }}
  {{- end }}
  {{- if .Values.nats.enabled }}
  - name: SIDECAR_NATS_USER
    value: $(SIDECAR_NODE_NAME)
  {{- else if eq .Values.bus.auth "userPassword" }}
  - name: SIDECAR_NATS_USER
    value: {{ default "$(SIDECAR_NODE_NAME)" .Values.bus.user | quote }}
  {{- end }}
  {{- if or .Values.nats.enabled (eq .Values.bus.auth "userPassword") }}
  - name: SIDECAR_NATS_PASSWORD_FILE
    value: /run/transfer-sidecar/bus/password
  {{- else if eq .Values.bus.auth "token" }}
  - name: SIDECAR_NATS_TOKEN_FILE
    value: /run/transfer-sidecar/bus/token
  {{- else if eq .Values.bus.auth "nkey" }}
  - name: SIDECAR_NATS_NKEY_SEED_FILE
    value: /run/transfer-sidecar/bus/nkey
  {{- end }}
  {{- if .Values.metrics.existingSecret }}
  - name: SIDECAR_API_METRICS_TOKEN_FILE
    value: /run/transfer-sidecar/metrics/metrics-token
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: api
    containerPort: {{ int .Values.listen.port }}
    {{- if include "sidecar.isOnHostNetwork" . }}
    hostPort: {{ int .Values.listen.port }}
    {{- else if and (eq .Values.mode "daemonset") .Values.listen.hostPort }}
    hostPort: {{ int .Values.listen.hostPort }}
    {{- end }}
    protocol: TCP
securityContext:
  {{- include "sidecar.containerSecurity" . | nindent 2 }}
startupProbe:
  {{- include "sidecar.probe" (list . .Values.startupProbe "/healthz") | nindent 2 }}
livenessProbe:
  {{- include "sidecar.probe" (list . .Values.livenessProbe "/healthz") | nindent 2 }}
readinessProbe:
  {{- include "sidecar.probe" (list . .Values.readinessProbe "/readyz") | nindent 2 }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- /* mounts of the sidecar, apart from those of the mode */ -}}
{{- define "sidecar.mounts" -}}
- name: config
  mountPath: /etc/transfer-sidecar/sidecar.toml
  subPath: sidecar.toml
  readOnly: true
{{- if .Values.node.existingSecret }}
{{ include "sidecar.secretMounts" (dict "name" "node" "perNode" .Values.node.perNode "files" (ternary (list "token" "token-id") (list "token") (ne (dig "panel" "url" "" .Values.config) "")) "keys" (dict)) }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{ include "sidecar.secretMounts" (dict "name" "tls" "perNode" .Values.tls.perNode "files" (list "tls.crt" "tls.key") "keys" (dict "tls.crt" "crt" "tls.key" "key")) }}
{{- else if .Values.tls.hostDirectory }}
- name: tls
  mountPath: /run/transfer-sidecar/tls
  readOnly: true
{{- end }}
{{- if .Values.nats.enabled }}
{{ include "sidecar.secretMounts" (dict "name" "bus" "perNode" true "files" (list "password") "keys" (dict)) }}
{{- else if ne .Values.bus.auth "none" }}
{{ include "sidecar.secretMounts" (dict "name" "bus" "perNode" .Values.bus.perNode "files" (list (include "sidecar.busKey" .)) "keys" (dict)) }}
{{- end }}
{{- if .Values.bus.tlsSecret }}
- name: bus-tls
  mountPath: /run/transfer-sidecar/bus-tls
  readOnly: true
{{- end }}
{{- if .Values.metrics.existingSecret }}
- name: metrics
  mountPath: /run/transfer-sidecar/metrics
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* A whole Secret as a directory; or, where each node has its own, only this node's files of it. */ -}}
{{- define "sidecar.secretMounts" -}}
{{- if .perNode -}}
{{- $all := . -}}
{{- range $at, $file := .files }}
{{- if $at }}{{ "\n" }}{{ end -}}
- name: {{ $all.name }}
  mountPath: /run/transfer-sidecar/{{ $all.name }}/{{ $file }}
  subPathExpr: $(SIDECAR_NODE_NAME).{{ get $all.keys $file | default $file }}
  readOnly: true
{{- end }}
{{- else -}}
- name: {{ .name }}
  mountPath: /run/transfer-sidecar/{{ .name }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "sidecar.busKey" -}}
{{- ternary "password" .Values.bus.auth (eq .Values.bus.auth "userPassword") -}}
{{- end -}}

{{- /* Secrets are 0444: the pod's own user is not their owner, and only this container mounts them */ -}}
{{- define "sidecar.volumes" -}}
- name: config
  configMap:
    name: {{ include "sidecar.fullname" . }}
    defaultMode: 0444
{{- with .Values.node.existingSecret }}
- name: node
  secret:
    secretName: {{ . }}
    defaultMode: 0444
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ .Values.tls.existingSecret }}
    defaultMode: 0444
{{- else if .Values.tls.hostDirectory }}
- name: tls
  hostPath:
    path: {{ .Values.tls.hostDirectory }}
    type: Directory
{{- end }}
{{- if or .Values.nats.enabled (ne .Values.bus.auth "none") }}
- name: bus
  secret:
    secretName: {{ ternary (printf "%s-nats" .Release.Name) .Values.bus.existingSecret .Values.nats.enabled }}
    defaultMode: 0444
{{- end }}
{{- with .Values.bus.tlsSecret }}
- name: bus-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0444
{{- end }}
{{- with .Values.metrics.existingSecret }}
- name: metrics
  secret:
    secretName: {{ . }}
    defaultMode: 0444
    items:
      - key: metrics-token
        path: metrics-token
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sidecar.podMetadata" -}}
labels:
  {{- include "sidecar.labels" . | nindent 2 }}
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include "sidecar.toml" . | sha256sum }}
  kubectl.kubernetes.io/default-container: transfer-sidecar
  {{- with .Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "sidecar.podSpec" -}}
serviceAccountName: {{ include "sidecar.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false # a Service named like the program would set variables that look like settings
terminationGracePeriodSeconds: {{ include "sidecar.grace" . }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.nodeSelector }}
nodeSelector:
  {{- toYaml .Values.nodeSelector | nindent 2 }}
{{- else if eq .Values.mode "daemonset" }}
nodeSelector:
  transfer-sidecar: enabled
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
