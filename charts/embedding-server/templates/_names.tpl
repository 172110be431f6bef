{{- define "embedding-server.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "embedding-server.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "embedding-server.metadata" -}}
name: {{ include "embedding-server.name" . }}
{{ include "embedding-server.labels" . }}
{{- end }}

{{- define "embedding-server.labels" -}}
labels:
  {{- include "embedding-server.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "embedding-server.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "embedding-server.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "embedding-server.serviceAccount" -}}
{{- with .Values.serviceAccount }}{{ .name | default (ternary (include "embedding-server.name" $) "" .create) }}{{ end }}
{{- end }}

{{- define "embedding-server.scheme" -}}
{{ ternary "HTTPS" "HTTP" (ne .Values.tls.secretName "") }}
{{- end }}

{{- /* The variables that the chart sets. Those of `env` follow, and the last variable of a name takes effect. */ -}}
{{- define "embedding-server.env" -}}
- name: EMBEDDING_SERVER_LOG_FORMAT
  value: json
{{- if .Values.tls.secretName }}
- name: EMBEDDING_SERVER_TLS_CERT
  value: /etc/embedding-server/tls/tls.crt
- name: EMBEDDING_SERVER_TLS_KEY
  value: /etc/embedding-server/tls/tls.key
{{- end }}
{{- if .Values.apiKeys.secretName }}
- name: EMBEDDING_SERVER_API_KEY_FILE
  value: /etc/embedding-server/keys/{{ .Values.apiKeys.key }}
{{- end }}
{{- if .Values.apiKeys.metricsNeedKey }}
- name: EMBEDDING_SERVER_METRICS_NEED_KEY
  value: "true"
{{- end }}
{{- if or .Values.tls.secretName .Values.apiKeys.secretName }}
- name: EMBEDDING_SERVER_RELOAD_INTERVAL
  value: {{ .Values.reloadInterval | quote }}
{{- end }}
{{- end }}

{{- define "embedding-server.mounts" -}}
{{- if .Values.config }}
- name: config
  mountPath: /etc/embedding-server/config
  readOnly: true
{{- end }}
{{- if .Values.tls.secretName }}
- name: tls
  mountPath: /etc/embedding-server/tls
  readOnly: true
{{- end }}
{{- if .Values.apiKeys.secretName }}
- name: keys
  mountPath: /etc/embedding-server/keys
  readOnly: true
{{- end }}
{{- if or .Values.models.claim .Values.models.fetch }}
- name: models
  mountPath: /models
  readOnly: {{ not .Values.models.fetch }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "embedding-server.volumes" -}}
{{- if .Values.config }}
- name: config
  configMap: {name: {{ include "embedding-server.name" . }}}
{{- end }}
{{- if .Values.tls.secretName }}
- name: tls
  secret: {secretName: {{ .Values.tls.secretName }}, defaultMode: 288}
{{- end }}
{{- if .Values.apiKeys.secretName }}
- name: keys
  secret: {secretName: {{ .Values.apiKeys.secretName }}, defaultMode: 288}
{{- end }}
{{- if .Values.models.claim }}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.models.claim }}, readOnly: true}
{{- else if .Values.models.fetch }}
- name: models
  emptyDir: {sizeLimit: {{ .Values.models.size }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
