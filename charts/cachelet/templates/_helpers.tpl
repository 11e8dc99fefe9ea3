{{- define "cachelet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "cachelet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "cachelet.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "cachelet.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cachelet.selector" -}}
app.kubernetes.io/name: {{ include "cachelet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of pods: those that a new chart version does not change, so that it replaces no pod by itself. */}}
{{- define "cachelet.podLabels" -}}
{{ include "cachelet.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cachelet.labels" -}}
{{ include "cachelet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cachelet.image" -}}
{{- $image := .Values.image -}}
{{- $name := printf "%s/%s" (trimSuffix "/" $image.registry) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "cachelet.pullSecrets" -}}
{{- range .Values.image.pullSecrets }}
- name: {{ . }}
{{- end }}
{{- end -}}

{{/* What every container may do: nothing beyond its own user. */}}
{{- define "cachelet.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "cachelet.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.user }}
runAsGroup: {{ int64 .Values.group }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Seconds that a stopping daemon may take: requests end, then connections, then pages are written to disk. */}}
{{- define "cachelet.gracePeriod" -}}
{{- add (mul 2 (int .Values.daemon.drainSeconds)) 20 -}}
{{- end -}}

{{- define "cachelet.secretName" -}}
{{- default (printf "%s-remote" (include "cachelet.fullname" .)) .Values.remote.existingSecret -}}
{{- end -}}

{{- define "cachelet.service" -}}
{{- printf "%s-locality.%s.svc:7070" (include "cachelet.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "cachelet.priorityClass" -}}
{{- if .Values.priorityClass.name -}}
{{- .Values.priorityClass.name -}}
{{- else if .Values.priorityClass.create -}}
{{- printf "%s-%s" .Release.Namespace (include "cachelet.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The volume of the socket's directory, as the release's own pods see it. */}}
{{- define "cachelet.socketVolume" -}}
{{- if eq .Values.mode "claims" -}}
persistentVolumeClaim:
  claimName: {{ .Values.claims.socket }}
{{- else -}}
hostPath:
  path: {{ .Values.hostPath.socket }}
  type: {{ ternary "DirectoryOrCreate" "Directory" .Values.prepareDirectories }}
{{- end -}}
{{- end -}}

{{/* Where daemons run. */}}
{{- define "cachelet.daemonNodes" -}}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: kubernetes.io/os, operator: In, values: [linux]}
            {{- range $key, $values := .Values.daemon.excludedNodes }}
            - {key: {{ $key | quote }}, operator: NotIn, values: {{ toJson $values }}}
            {{- end }}
{{- with .Values.daemon.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.daemon.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A volume that is a directory of whatever node it is mounted on, for one claim. */}}
{{- define "cachelet.volumeSpec" -}}
capacity: {storage: 1Gi}
accessModes: [ReadWriteMany]
persistentVolumeReclaimPolicy: Retain
storageClassName: ""
volumeMode: Filesystem
claimRef: {namespace: {{ .namespace }}, name: {{ .claim }}}
{{- if eq .claims.volumeKind "local" }}
local:
  path: {{ .path }}
nodeAffinity:
  required:
    nodeSelectorTerms:
      - matchExpressions:
          - {key: {{ regexReplaceAll "=.*" .claims.nodeLabel "" }}, operator: In, values: [{{ regexReplaceAll "[^=]*=" .claims.nodeLabel "" | quote }}]}
{{- else }}
hostPath:
  path: {{ .path }}
  type: DirectoryOrCreate
{{- end }}
{{- end -}}

{{/* The claim of the volume of this name. */}}
{{- define "cachelet.claimSpec" -}}
accessModes: [ReadWriteMany]
storageClassName: ""
volumeName: {{ . }}
resources: {requests: {storage: 1Gi}}
{{- end -}}

{{- define "cachelet.wipe.labels" -}}
{{ include "cachelet.labels" . }}
app.kubernetes.io/component: wipe
{{- end -}}

{{/* An object of the uninstallation, created in the order of its weight and gone afterwards, however that ended. */}}
{{- define "cachelet.wipe.hook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}

{{/* One TOML value. Numbers of values are floats to Helm; those without a fraction are written as the integers they are. */}}
{{- define "cachelet.toml.value" -}}
{{- if kindIs "slice" . -}}
[{{ range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "cachelet.toml.value" $item }}{{ end }}]
{{- else if kindIs "string" . -}}
{{ . | toJson }}
{{- else if kindIs "bool" . -}}
{{ . }}
{{- else if eq (float64 (int64 .)) (float64 .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* The keys of one TOML table. */}}
{{- define "cachelet.toml.table" -}}
{{- range $key := keys . | sortAlpha }}
{{- $value := index $ $key }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "cachelet.toml.value" $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The daemon's configuration: what the chart knows, overridden by daemon.config. */}}
{{- define "cachelet.daemonConfig" -}}
{{- $grace := include "cachelet.gracePeriod" . | int -}}
{{- $cache := dict "directory" "/var/lib/cachelet" "read_only_path" "/var/lib/cachelet-ro" "quota" .Values.cache.quota "dedicated" .Values.cache.dedicated "takeover_wait" (printf "%ds" (add $grace 60)) -}}
{{- $local := dict "socket_dir" "/var/run/cachelet" "socket_group" .Values.socketGroup -}}
{{- $admin := dict "listen" "0.0.0.0:7002" "drain_timeout" (printf "%ds" (int .Values.daemon.drainSeconds)) -}}
{{- $locality := dict "service" (printf "http://%s-locality-workers.%s.svc:7071" (include "cachelet.fullname" .) .Release.Namespace) "http" (include "cachelet.service" .) -}}
{{- $config := dict "cache" $cache "local" $local "admin" $admin "locality" $locality -}}
{{- if .Values.remote.enabled -}}
{{- $_ := set $config "remote" (dict "listen" "0.0.0.0:7001" "secret_file" "/etc/cachelet/remote/secret") -}}
{{- end -}}
{{- $config = mergeOverwrite $config (deepCopy .Values.daemon.config) -}}
{{- range $section := keys $config | sortAlpha -}}
[{{ $section }}]
{{- include "cachelet.toml.table" (index $config $section) }}

{{ end -}}
{{- range $store := .Values.stores -}}
[[store]]
{{- $settings := omit $store "secret" -}}
{{- if $store.secret -}}
{{- $directory := printf "/etc/cachelet/stores/%s" $store.name -}}
{{- $_ := set $settings "access_key_id_file" (printf "%s/access_key_id" $directory) -}}
{{- $_ := set $settings "secret_access_key_file" (printf "%s/secret_access_key" $directory) -}}
{{- if $store.session_token -}}
{{- $_ := set $settings "session_token_file" (printf "%s/session_token" $directory) -}}
{{- end -}}
{{- end -}}
{{- include "cachelet.toml.table" (omit $settings "session_token") }}

{{ end -}}
{{- end -}}

{{/* What must hold between values; the schema cannot say it. */}}
{{- define "cachelet.check" -}}
{{- if not .Values.stores -}}
{{- fail "stores: no store is configured. Give at least one, for example:\n  stores:\n    - {name: lake, kind: s3, region: eu-central-1}" -}}
{{- end -}}
{{- $zero := list "0" "0%" -}}
{{- $surge := not (has (toString .Values.daemon.maxSurge) $zero) -}}
{{- $unavailable := not (has (toString .Values.daemon.maxUnavailable) $zero) -}}
{{- if and $surge $unavailable -}}
{{- fail "daemon.maxSurge: needs daemon.maxUnavailable: 0 (a new daemon starts before the old one ends, or after it, not both)" -}}
{{- end -}}
{{- if not (or $surge $unavailable) -}}
{{- fail "daemon.maxUnavailable: 0 needs daemon.maxSurge above 0, or no daemon could ever be replaced" -}}
{{- end -}}
{{- $names := dict -}}
{{- range .Values.stores -}}
{{- if hasKey $names .name -}}
{{- fail (printf "stores: two stores are named %q; give each a name of its own" .name) -}}
{{- end -}}
{{- $_ := set $names .name true -}}
{{- end -}}
{{- if and .Values.claims.create (ne .Values.mode "claims") -}}
{{- fail "claims.create: has no effect with mode: hostPath; set mode: claims" -}}
{{- end -}}
{{- end -}}
