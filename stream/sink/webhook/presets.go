package webhook

// Presets are templates for receivers that want words of their own. They are
// examples of what a template can use, too.
var Presets = map[string]string{
	// Slack and Mattermost incoming webhooks.
	"slack": `{"text":{{json .Title}},"blocks":[` +
		`{"type":"section","text":{"type":"mrkdwn","text":{{json (printf "*%s*\n%s" .Title .Text)}}}},` +
		`{{if .PictureURL}}{"type":"image","image_url":{{json .PictureURL}},"alt_text":"the frame, with the strange places marked"},{{end}}` +
		`{"type":"context","elements":[{"type":"mrkdwn","text":{{json (date "2006-01-02 15:04:05 MST" .Time)}}}]}` +
		`{{if .Link}},{"type":"actions","elements":[{"type":"button","text":{"type":"plain_text","text":"Look"},"url":{{json .Link}}}]}{{end}}]}`,
	"mattermost": `{"text":{{json (printf "**%s**\n%s %s" .Title .Text .Link)}}` +
		`{{if .PictureURL}},"attachments":[{"fallback":"picture","image_url":{{json .PictureURL}}}]{{end}}}`,
	"discord": `{"content":{{json (short 2000 (printf "**%s**\n%s %s" .Title .Text .Link))}},"allowed_mentions":{"parse":[]}` +
		`{{if .PictureURL}},"embeds":[{"image":{"url":{{json .PictureURL}}}}]{{end}}}`,
	// Microsoft Teams by Workflows: an adaptive card.
	"teams": `{"type":"message","attachments":[{"contentType":"application/vnd.microsoft.card.adaptive","content":{` +
		`"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","type":"AdaptiveCard","version":"1.4","body":[` +
		`{"type":"TextBlock","size":"Medium","weight":"Bolder","wrap":true,"text":{{json .Title}}},` +
		`{"type":"TextBlock","wrap":true,"text":{{json .Text}}},` +
		`{{if .PictureURL}}{"type":"Image","url":{{json .PictureURL}},"altText":"the frame, with the strange places marked"},{{end}}` +
		`{"type":"TextBlock","isSubtle":true,"text":{{json (date "2006-01-02 15:04:05 MST" .Time)}}}]` +
		`{{if .Link}},"actions":[{"type":"Action.OpenUrl","title":"Look","url":{{json .Link}}}]{{end}}}}]}`,
	// ntfy, posted to the server's root with the topic in the body: replace TOPIC
	// by writing this as a template of your own.
	"ntfy": `{"topic":"nearmiss","title":{{json .Title}},"message":{{json (printf "%s " .Text)}},"priority":{{if eq .Severity "critical"}}4{{else}}3{{end}}{{if .Link}},"click":{{json .Link}}{{end}}{{if .PictureURL}},"attach":{{json .PictureURL}}{{end}}}`,
	// Alertmanager, API v2: /api/v2/alerts.
	"alertmanager": `[{"labels":{"alertname":{{json (printf "Nearmiss_%s" .Kind)}},"detector":{{json .Detector}},"camera":{{json .Camera}},"severity":{{json .Severity}}},` +
		`"annotations":{"summary":{{json .Title}},"description":{{json .Text}}{{if .PictureURL}},"picture":{{json .PictureURL}}{{end}}},"startsAt":{{if .Incident}}{{json .Incident.OpenedAt}}{{else}}{{json .Time}}{{end}}{{if .Incident}}{{if eq .Incident.Phase "end"}},"endsAt":{{json .Incident.EndedAt}}{{end}}{{end}}{{if .Link}},"generatorURL":{{json .Link}}{{end}}}]`,
	// PagerDuty, Events API v2: https://events.pagerduty.com/v2/enqueue, with auth
	// routing_key. The end of an incident resolves what its beginning triggered.
	"pagerduty": `{"event_action":{{if and .Incident (eq .Incident.Phase "end")}}"resolve"{{else}}"trigger"{{end}},` +
		`"dedup_key":{{if .Incident}}{{json .Incident.ID}}{{else}}{{json .ID}}{{end}},"client":"Nearmiss",` +
		`"payload":{"summary":{{json (short 1024 (printf "%s. %s" .Title .Text))}},"source":{{json (printf "%s/%s" .Detector .Camera)}},"severity":{{json .Severity}},` +
		`"timestamp":{{json .Time}},"component":{{json .Camera}},"group":{{json .Detector}},"class":{{json .Kind}},` +
		`"custom_details":{"score":{{json .Score}},"threshold":{{json .Limit}},"reason":{{json .Reason}},"event":{{json .Event.ID}}}}` +
		`{{if .PictureURL}},"images":[{"src":{{json .PictureURL}},"alt":"the frame, with the strange places marked"}]{{end}}` +
		`{{if .Link}},"links":[{"href":{{json .Link}},"text":"Look"}]{{end}}}`,
}
