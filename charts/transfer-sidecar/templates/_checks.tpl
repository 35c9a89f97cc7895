{{- /* What a schema cannot say. Each message begins with the value that is wrong. */ -}}
{{- define "sidecar.checks" -}}
{{- $v := .Values -}}
{{- $beside := include "sidecar.isBeside" . -}}
{{- if and (eq $v.mode "dind") $v.beside.enabled -}}
{{- fail "beside.enabled: a node daemon runs on the nodes, so it goes with mode daemonset only" -}}
{{- end -}}
{{- if and (not $beside) (not $v.node.existingSecret) -}}
{{- fail "node.existingSecret: the Secret with the nodes' tokens must be named (see the chart's README, Secrets)" -}}
{{- end -}}
{{- if and (eq $v.mode "daemonset") (not $beside) (eq (toString $v.docker.groupId) "") -}}
{{- fail "docker.groupId: the numeric group of the engine's socket must be set; on a node: stat -c %g /var/run/docker.sock" -}}
{{- end -}}
{{- if and $beside (not $v.beside.asRoot) (eq (toString $v.docker.groupId) "") (ne (dig "containers" "runtime" "docker" $v.config) "none") -}}
{{- fail "docker.groupId: must be set beside a daemon, too, where beside.asRoot is false and config.containers.runtime is not none" -}}
{{- end -}}
{{- if and (lt (int $v.listen.port) 1024) (not (include "sidecar.isRoot" .)) -}}
{{- fail "listen.port: only root may listen below 1024; set listen.hostPort or a Service to that port instead" -}}
{{- end -}}
{{- if and $v.nats.enabled (ne (dig "nats" "root" "transfer" $v.config) (dig "root" "transfer" $v.nats)) -}}
{{- fail "nats.root: it must be config.nats.root, the first part of every subject" -}}
{{- end -}}
{{- if and $v.tls.existingSecret $v.tls.hostDirectory -}}
{{- fail "tls.hostDirectory: give it or tls.existingSecret, not both" -}}
{{- end -}}
{{- if and (eq $v.mode "dind") $v.tls.hostDirectory -}}
{{- fail "tls.hostDirectory: the pods of mode dind have no fixed node; use tls.existingSecret" -}}
{{- end -}}
{{- if and $v.nats.enabled $v.bus.url -}}
{{- fail "bus.url: give it or nats.enabled, not both" -}}
{{- end -}}
{{- if and $v.nats.enabled (ne $v.bus.auth "none") -}}
{{- fail "bus.auth: with nats.enabled it must stay none; each node logs in with the password that was made for it" -}}
{{- end -}}
{{- if and (ne $v.bus.auth "none") (not $v.bus.existingSecret) -}}
{{- fail (printf "bus.existingSecret: the Secret for bus.auth %s must be named" $v.bus.auth) -}}
{{- end -}}
{{- if and (ne $v.bus.auth "none") (not $v.bus.url) -}}
{{- fail "bus.url: it must be set where bus.auth is" -}}
{{- end -}}
{{- if and (eq $v.bus.auth "userPassword") (not $v.bus.user) (not $v.bus.perNode) -}}
{{- fail "bus.user: it must be set for bus.auth userPassword, unless bus.perNode takes the node's name" -}}
{{- end -}}
{{- if and $v.bus.tlsSecret (not (hasPrefix "tls://" $v.bus.url)) -}}
{{- fail "bus.url: it must begin with tls:// where bus.tlsSecret is set" -}}
{{- end -}}
{{- if and $v.bus.tlsClientCertificate (not $v.bus.tlsSecret) -}}
{{- fail "bus.tlsSecret: it must be set where bus.tlsClientCertificate is" -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.metrics.existingSecret) -}}
{{- fail "metrics.existingSecret: it must be set with serviceMonitor.enabled, as Prometheus has to present its token" -}}
{{- end -}}
{{- end -}}
