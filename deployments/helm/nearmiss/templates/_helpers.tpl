{{- define "nearmiss.name" -}}{{ printf "%s-nearmiss" .Release.Name | trunc 50 | trimSuffix "-" }}{{- end }}

{{- define "nearmiss.labels" -}}
app.kubernetes.io/name: nearmiss
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "nearmiss.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest | quote }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
{{- end -}}
{{- end }}

{{- define "nearmiss.podSecurity" -}}
automountServiceAccountToken: false
terminationGracePeriodSeconds: 40
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "nearmiss.containerSecurity" -}}
image: {{ include "nearmiss.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: ["ALL"]}
{{- end }}

{{- define "nearmiss.probes" -}}
ports:
  - {name: http, containerPort: 9420}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
{{- end }}

{{- /* environment of every process; .role is the identity's */ -}}
{{- define "nearmiss.env" -}}
- {name: NEARMISS_SERVER, value: {{ .root.Values.nats.url | quote }}}
- {name: NEARMISS_PREFIX, value: {{ .root.Values.prefix | quote }}}
- {name: NEARMISS_HTTP_LISTEN, value: "0.0.0.0:9420"}
- {name: NEARMISS_DATA, value: /var/lib/nearmiss}
- {name: NEARMISS_CACHE, value: /var/cache/nearmiss}
- {name: NEARMISS_LOG_FORMAT, value: json}
{{- if .root.Values.nats.credsSecret }}
- {name: NEARMISS_NKEY, value: /etc/nearmiss/keys/{{ .role }}.nk}
{{- end }}
{{- if .root.Values.nats.tlsSecret }}
- {name: NEARMISS_TLS_CA, value: /etc/nearmiss/tls/ca.crt}
{{- end }}
{{- end }}

{{- define "nearmiss.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/nearmiss}
{{- if .Values.nats.credsSecret }}
- {name: keys, mountPath: /etc/nearmiss/keys, readOnly: true}
{{- end }}
{{- if .Values.nats.tlsSecret }}
- {name: tls, mountPath: /etc/nearmiss/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "nearmiss.volumes" -}}
- {name: tmp, emptyDir: {}}
- {name: cache, emptyDir: {}}
{{- if .Values.nats.credsSecret }}
- {name: keys, secret: {secretName: {{ .Values.nats.credsSecret }}, defaultMode: 288}}
{{- end }}
{{- if .Values.nats.tlsSecret }}
- {name: tls, secret: {secretName: {{ .Values.nats.tlsSecret }}}}
{{- end }}
{{- end }}
