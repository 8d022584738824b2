// Runs Grafana's own transformations: {transformations, frames} on stdin, the frames that come out on stdout.
// @grafana/data looks for a browser when it is loaded; the transformations themselves need none.
global.history = { pushState() {}, replaceState() {} };
global.window = { addEventListener() {}, location: { href: "", search: "" }, navigator: {}, history };
const element = () => ({ appendChild() {}, insertBefore() {}, setAttribute() {} });
global.document = { createElement: element, createTextNode: element, getElementsByTagName: () => [element()], head: element() };
global.DOMParser = class {};

const data = require(`${process.argv[2]}/node_modules/@grafana/data`);
const { lastValueFrom } = require(`${process.argv[2]}/node_modules/rxjs`);

const known = new Map(Object.values(data.standardTransformers).map((one) => [one.id, one]));
data.standardTransformersRegistry.setInit(() =>
  [...known.values()].map((one) => ({ id: one.id, name: one.id, transformation: one })),
);

const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const frames = given.frames.map((frame) => data.toDataFrame(frame));
for (const one of given.transformations) {
  if (!known.has(one.id)) throw new Error(`Grafana has no transformation ${one.id}`);
}
lastValueFrom(data.transformDataFrame(given.transformations, frames)).then((made) => {
  const plain = made.map((frame) => ({
    refId: frame.refId,
    fields: frame.fields.map(({ name, type, values }) => ({ name, type, values: Array.from(values) })),
  }));
  console.log(JSON.stringify(plain));
});
