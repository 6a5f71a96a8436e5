{{- define "causeway.image" -}}
{{ .Values.image.name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Labels of one component's objects: call with (list $ "component"). */}}
{{- define "causeway.labels" -}}
{{ include "causeway.selector" . }}
app.kubernetes.io/part-of: causeway
{{- end }}

{{/* The part of them that selects pods and never changes. */}}
{{- define "causeway.selector" -}}
app.kubernetes.io/name: causeway
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* What a container that parses bytes from outside may do: nothing. */}}
{{- define "causeway.confined" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end }}

{{/* GOMEMLIMIT as an item of env, 90 % of the memory limit; nothing without a limit. Call with the resources. */}}
{{- define "causeway.memoryLimit" -}}
{{- with dig "limits" "memory" "" (. | default dict) }}
{{- $number := regexFind "^[0-9.]+" . | float64 }}
{{- $unit := regexReplaceAll "^[0-9.]+" . "" }}
{{- $bytes := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
- name: GOMEMLIMIT
  value: {{ mulf $number (get $bytes $unit) 0.9 | floor | int64 | quote }}
{{- end }}
{{- end }}

{{/* What OpenTelemetry reads from the environment, as items of env; nothing without traces. */}}
{{- define "causeway.tracingEnv" -}}
{{- if .Values.tracing.endpoint }}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.cluster.name=%s,k8s.node.name=$(NODE_NAME)" .Values.clusterName | quote }}
{{- if .Values.tracing.secret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ .Values.tracing.secret | quote }}, key: headers, optional: true}}
{{- end }}
{{- end }}
{{- end }}

{{/* Prefers pods of one component on different nodes. */}}
{{- define "causeway.spread" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "causeway.selector" . | nindent 12 }}
{{- end }}

{{/* Where the node stream is, for gateways and agents. */}}
{{- define "causeway.nodestream" -}}
causeway-controller.{{ .Release.Namespace }}.svc:4146
{{- end }}

{{/* The token by which the controller knows gateways and agents. */}}
{{- define "causeway.tokenVolume" -}}
name: token
projected:
  sources:
    - serviceAccountToken:
        audience: causeway
        expirationSeconds: 3600
        path: token
{{- end }}

{{/* This cluster's public half, which the controller makes at its first start. */}}
{{- define "causeway.identityVolume" -}}
name: identity
configMap:
  name: causeway-identity
{{- end }}

{{/* When Helm makes and deletes what it needs to take Causeway out; Job last. Call with the weight. */}}
{{- define "causeway.preDelete" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
