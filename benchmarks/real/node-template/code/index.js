"use strict";

const fs = require("node:fs");
const mustache = require("mustache");

const event = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

const template = `<h1>{{title}}</h1>
{{#articles}}<article><h2>{{name}}</h2>{{#isNew}}<b>new</b>{{/isNew}}<p>{{text}}</p>{{> author}}</article>
{{/articles}}{{^articles}}nothing{{/articles}}`;
const articles = Array.from({ length: event.articles }, (_, at) => ({
  name: `Article <${at}>`,
  isNew: at % 3 === 0,
  text: "word ".repeat((at % 9) + 1).trim(),
  author: event.authors[at % event.authors.length],
}));
const page = mustache.render(template, { title: event.title, articles }, { author: "<i>{{author}}</i>" });
console.log(page.length, page.split("<b>new</b>").length - 1);
console.log(page.split("\n").slice(0, 3).join("\n"));
