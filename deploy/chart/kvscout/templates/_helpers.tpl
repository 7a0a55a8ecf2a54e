{{- define "kvscout.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "kvscout.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "kvscout.name" .) -}}
{{- end -}}

{{/* What selects pods: never changes. Called with a dict of root and component. */}}
{{- define "kvscout.selector" -}}
app.kubernetes.io/name: kvscout
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "kvscout.labels" -}}
{{ include "kvscout.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end -}}

{{- define "kvscout.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kvscout.natsServers" -}}
{{- if .Values.nats.install -}}
{{- list (printf "nats://%s-nats:4222" (include "kvscout.name" .)) | toJson -}}
{{- else -}}
{{- if not .Values.nats.servers }}{{ fail "nats.servers: name the cluster's, or set nats.install" }}{{ end -}}
{{- .Values.nats.servers | toJson -}}
{{- end -}}
{{- end -}}

{{/* Whether pools and pods are asked of the cluster. */}}
{{- define "kvscout.watches" -}}
{{- if not (dig "fleet" "file" "" .Values.config) }}true{{ end -}}
{{- end -}}

{{/* kvscout.yaml: what the chart says, and the operator's word over it. */}}
{{- define "kvscout.config" -}}
{{- $ours := dict "listen" (dict "admin" "0.0.0.0:9090") -}}
{{- if include "kvscout.watches" . -}}
{{- $kubernetes := dict "service" (include "kvscout.name" .) -}}
{{- if .Values.leaderElection.enabled -}}
{{- $_ := set $kubernetes "leader_election" (dict "lease" (include "kvscout.name" .)) -}}
{{- end -}}
{{- $_ := set $ours "fleet" (dict "kubernetes" $kubernetes) -}}
{{- end -}}
{{- if eq .Values.tls.mode "secret" -}}
{{- $_ := required "tls.secret: name the Secret, or choose another tls.mode" .Values.tls.secret -}}
{{- $_ := set $ours "tls" (dict "mode" "files" "cert" "/etc/kvscout-tls/tls.crt" "key" "/etc/kvscout-tls/tls.key") -}}
{{- else -}}
{{- $_ := set $ours "tls" (dict "mode" .Values.tls.mode) -}}
{{- end -}}
{{- if .Values.nats.enabled -}}
{{- $nats := dict "servers" (include "kvscout.natsServers" . | fromJsonArray) "namespace" .Release.Namespace "pool" (include "kvscout.name" .) -}}
{{- $_ := set $ours "events" (dict "source" "nats" "nats" $nats) -}}
{{- end -}}
{{- $config := mergeOverwrite $ours (deepCopy .Values.config) -}}
{{- if and .Values.poolServices (include "kvscout.watches" .) -}}
{{- $kubernetes := $config.fleet.kubernetes -}}
{{- $_ := set $kubernetes "pools" (concat .Values.poolServices (dig "pools" list $kubernetes) | uniq) -}}
{{- end -}}
{{- $config | toYaml -}}
{{- end -}}

{{/* Where vLLM connects to: the first port, if it does. A publisher connects to one address. */}}
{{- define "kvscout.bindPort" -}}
{{- $bind := dig "events" "bind" "" .Values.config -}}
{{- if and $bind (not (include "kvscout.bridges" .)) (gt (int .Values.replicas) 1) -}}
{{- fail "config.events.bind: is for one picker or one bridge; say replicas: 1, or nats.enabled" -}}
{{- end -}}
{{- if $bind -}}{{- regexFind "[0-9]+$" $bind -}}{{- end -}}
{{- end -}}

{{- define "kvscout.bridges" -}}
{{- if and .Values.nats.enabled .Values.bridge.enabled }}true{{ end -}}
{{- end -}}

{{/* A Service's ports for it. */}}
{{- define "kvscout.bindPorts" -}}
{{- $first := include "kvscout.bindPort" . | int -}}
{{- range $rank := until (int .Values.service.eventRanks) }}
- {name: kv-events-{{ $rank }}, port: {{ add $first $rank }}, targetPort: {{ add $first $rank }}}
{{- end -}}
{{- end -}}

{{/* Milliseconds of the configuration's limits, its defaults included, as whole seconds, and five to join. */}}
{{- define "kvscout.graceSeconds" -}}
{{- $limits := .Values.config.limits | default dict -}}
{{- $notice := dig "drain_notice_ms" 5000 $limits | int -}}
{{- $drain := dig "drain_ms_max" 30000 $limits | int -}}
{{- add (div (add $notice $drain 999) 1000) 10 -}}
{{- end -}}

{{- define "kvscout.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "kvscout.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
