"""The style sheet and the script of every page: ink on paper and one accent, with nothing from outside.

A page can be read without the script. The script adds the full size of a grid, the values under the pointer,
and the slider through the sample grids of a run.
"""

STYLE = """
:root{color-scheme:light dark;--strength:1;--paper:#fbfaf7;--ink:#1d1d20;--quiet:#67686f;
--line:#e2e0da;--accent:#2d55c8;
--tint:#2d55c81c;--behind:#2d55c83d;--code:#f1efe9}
@media(prefers-color-scheme:dark){:root{--paper:#141518;--ink:#ececea;--quiet:#9b9ca5;--line:#2c2e34;
--accent:#8fb0ff;--tint:#8fb0ff1f;--behind:#8fb0ff47;--code:#1d1f24}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 ui-sans-serif,system-ui,-apple-system,
"Segoe UI",Inter,Roboto,"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:68rem;margin:0 auto;padding:clamp(2rem,6vw,4.5rem) clamp(1rem,4vw,2.5rem) 4rem}
h1,h2,h3,p,figure,dl,dd,ol{margin:0;padding:0}
.over{color:var(--quiet);font-size:.875rem}
h1{font-size:clamp(2rem,6vw,3rem);line-height:1.1;letter-spacing:-.025em;font-weight:650;
margin:.35rem 0 1.1rem;overflow-wrap:anywhere}
.verdict{font-size:clamp(1.15rem,2.6vw,1.4rem);line-height:1.42;max-width:44rem;text-wrap:pretty}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.25rem,1fr));gap:1.6rem 1.5rem;
margin-top:2.6rem}
.figures div{display:flex;flex-direction:column}
.figures dt{order:2;font-size:.875rem;line-height:1.35}
.figures dd{order:1;font-size:1.75rem;line-height:1.2;font-weight:600;letter-spacing:-.02em}
.figures dd.first{color:var(--accent)}
.figures dd small{font-size:.95rem;font-weight:500;letter-spacing:0;color:var(--quiet);margin-left:.25em}
.figures span{order:3;color:var(--quiet);font-size:.8125rem;line-height:1.4;margin-top:.1rem}
h2{font-size:1.25rem;letter-spacing:-.012em;font-weight:640;margin:4rem 0 .35rem}
h2+p,.note{color:var(--quiet);font-size:.875rem;max-width:46rem}
.scroll{overflow-x:auto;border-radius:3px}
img{display:block;width:100%;height:auto;cursor:zoom-in;background:var(--line)}
.charts{display:grid;grid-template-columns:1fr 1fr;gap:2.75rem 2.5rem;margin-top:1.5rem}
.charts h3{font-size:.975rem;font-weight:620}
.charts .note{min-height:2.9em;font-size:.8125rem;line-height:1.45;margin:.1rem 0 .6rem;text-wrap:pretty}
.charts .note.at{color:var(--ink)}
svg{display:block;width:100%;height:auto;overflow:visible;touch-action:pan-y}
svg text{font-size:11.5px;fill:var(--quiet)}
svg .label{font-size:11.5px;font-weight:600;fill:var(--ink)}
svg .label.accent{fill:color-mix(in oklab,var(--accent) calc(var(--strength)*100%),var(--quiet))}
svg .label.ink{fill:var(--quiet)}
svg .label tspan{font-weight:400}
svg path,svg circle{vector-effect:non-scaling-stroke}
svg .rule,svg .zero{stroke:var(--line);stroke-width:1;fill:none}
svg .zero{stroke:var(--quiet)}
svg .accent,svg .ink,svg .faint{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg path.accent{stroke:color-mix(in oklab,var(--accent) calc(var(--strength)*100%),var(--line))}
svg path.ink{stroke:var(--quiet);stroke-width:1.5}
svg path.faint{stroke:var(--behind);stroke-width:1}
svg circle.accent{fill:color-mix(in oklab,var(--accent) calc(var(--strength)*100%),var(--line))}
svg circle.ink{fill:var(--quiet)}
svg .area{fill:var(--tint)}
svg .at{stroke:var(--quiet);stroke-width:1;stroke-dasharray:2 3}
pre{background:var(--code);border-radius:5px;padding:.8rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere;
margin:.5rem 0 1.1rem}
code,pre{font:.84375rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.columns{columns:2 22rem;column-gap:3rem;margin-top:1.2rem}
.columns>.group:only-child{break-inside:auto}
tr{break-inside:avoid}
.group{break-inside:avoid;margin-bottom:1.6rem}
.group h3{font-size:.875rem;font-weight:620;padding-bottom:.3rem}
table{border-collapse:collapse;width:100%;font-size:.84375rem}
td{border-top:1px solid var(--line);padding:.26rem 0;vertical-align:top;overflow-wrap:anywhere}
td:first-child{color:var(--quiet);padding-right:1rem;width:46%}
summary{cursor:pointer;font-size:.9375rem;color:var(--accent);margin-top:.6rem}
dialog{border:0;padding:0;background:transparent;max-width:100vw;max-height:100vh;overflow:auto}
dialog::backdrop{background:#000c}
dialog img{width:auto;max-width:none;cursor:zoom-out}
footer{margin-top:4.5rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--quiet);
font-size:.8125rem}
@media(max-width:46rem){.charts{grid-template-columns:1fr;gap:2.25rem}.charts .note{min-height:0}
svg text,svg .label{font-size:13px}h2{margin-top:3rem}
.figures{grid-template-columns:1fr 1fr}.figures dd{font-size:1.5rem}}
section>p{text-wrap:pretty}
h3{font-size:.975rem;font-weight:620}
.block{margin-top:1.6rem}
.block .note{margin:.1rem 0 .5rem}
table.data{width:auto;min-width:min(100%,34rem);font-size:.875rem}
.data th,.data td{padding:.34rem 0 .34rem 1.6rem;text-align:right;border-top:1px solid var(--line);
white-space:nowrap;font-weight:400;color:var(--ink);width:auto;vertical-align:baseline}
.data thead th{border-top:0;color:var(--quiet);font-size:.8125rem;vertical-align:bottom;white-space:normal}
.data th:first-child,.data td:first-child{padding-left:0;text-align:left;white-space:normal;min-width:7rem}
.data .words{text-align:left}
.data small{color:var(--quiet);font-size:.78rem;display:inline-block}
.data .ends small{min-width:var(--room);text-align:left;margin-left:.4em}
.data .strong th,.data .strong td{font-weight:640}
.data .strong td small{font-weight:400}
.stacks{display:grid;grid-template-columns:repeat(var(--stacks),1fr);gap:.4rem 2.2rem;margin-top:.5rem}
.titles{display:grid;grid-template-columns:repeat(var(--n),1fr);align-items:end;text-align:center;
color:var(--quiet);font-size:.75rem;line-height:1.25;padding-bottom:.3rem}
.titles span{padding:0 .2rem;overflow-wrap:break-word;min-width:0}
.strip{margin-bottom:.75rem}
.strip div{position:relative}
.strip div::after{content:"";position:absolute;inset:0;pointer-events:none;background:
repeating-linear-gradient(90deg,transparent 0 calc(100%/var(--n) - 3px),
var(--paper) calc(100%/var(--n) - 3px) calc(100%/var(--n)))}
.strip figcaption{font-size:.75rem;line-height:1.35;color:var(--quiet);padding-top:.2rem}
.chart details{font-size:.8125rem}
.chart summary{font-size:.8125rem;color:var(--quiet)}
.chart table.data{min-width:0;font-size:.8125rem}
@media(max-width:46rem){.stacks{grid-template-columns:1fr}.wide .strip,.wide .titles{min-width:36rem}
.data th,.data td{padding-left:1rem}
.data small,.data .ends small{display:block;margin:0;min-width:0;text-align:right}}
.bar{height:3px;background:var(--line);margin:2rem 0 .6rem}
.bar i{display:block;height:100%;background:var(--accent)}
.state{color:var(--quiet);font-size:.875rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1.25rem;margin-top:1.25rem}
.pair.wide{grid-template-columns:1fr}
.pair figcaption{font-size:.875rem;color:var(--quiet);margin-bottom:.4rem}
.pair b{color:var(--ink);font-weight:600}
.pair.wide img{min-width:34rem}
.slide{display:none;align-items:center;gap:1rem;margin-top:1rem;font-size:.875rem;color:var(--quiet)}
.js .slide{display:flex}
input[type=range]{flex:1;accent-color:var(--accent);height:1.75rem;min-width:0}
.js .rest{display:none}
.rest figure{margin-top:1rem}
ol.events{list-style:none;margin-top:1rem}
ol.events li{display:grid;grid-template-columns:6.5rem 8rem 1fr;gap:1rem;padding:.45rem 0;font-size:.9375rem;
border-top:1px solid var(--line)}
ol.events p{overflow-wrap:anywhere}
ol.events span{color:var(--quiet);white-space:nowrap}
@media(max-width:46rem){.pair{grid-template-columns:1fr}ol.events li{grid-template-columns:auto 1fr;
gap:.1rem 1rem}ol.events p{grid-column:1/-1}}
@media print{.slide{display:none!important}.rest{display:block!important}}
"""

SCRIPT = """
document.documentElement.classList.add('js');
const large=document.querySelector('dialog');
for(const image of document.querySelectorAll('.grid'))image.onclick=()=>{
  const picture=large.querySelector('img');picture.src=image.src;
  picture.width=Math.max(image.naturalWidth,innerWidth*.9);large.showModal()};
large.onclick=()=>large.close();
for(const figure of document.querySelectorAll('.chart')){
  const svg=figure.querySelector('svg'),note=figure.querySelector('.note'),text=note.textContent;
  if(!svg.dataset.lines)continue;
  const across=svg.dataset.across?svg.dataset.across+' =':'Step';
  const [low,high,start,end]=svg.dataset.axis.split(' ').map(Number),lines=JSON.parse(svg.dataset.lines);
  const mark=document.createElementNS('http://www.w3.org/2000/svg','path');mark.setAttribute('class','at');
  const near=(points,step)=>points.reduce((a,b)=>Math.abs(b[0]-step)<Math.abs(a[0]-step)?b:a);
  const known=lines.filter(line=>line[1].length);if(!known.length)continue;
  const main=known[known.length-1][1];
  svg.onpointermove=event=>{const box=svg.getBoundingClientRect();
    const x=(event.clientX-box.left)/box.width*svg.viewBox.baseVal.width;
    const step=near(main,low+(x-start)/(end-start)*(high-low))[0];
    mark.setAttribute('d','M'+(start+(step-low)/(high-low)*(end-start))+' 12V198');svg.append(mark);
    note.textContent=across+' '+step.toLocaleString('en')+': '+known.map(
      ([name,points])=>(name?name+' ':'')+near(points,step)[1]).reverse().join(', ')+'.';
    note.classList.add('at')};
  svg.onpointerleave=()=>{mark.remove();note.textContent=text;note.classList.remove('at')}}
const range=document.querySelector('.slide input');
if(range){const view=document.querySelector('.now'),name=document.querySelector('.now-step'),grids=[
  ...document.querySelectorAll('.grid')].map(
  image=>({source:image.getAttribute('src'),step:image.dataset.step}));
  const order=grids.sort((a,b)=>a.step-b.step);
  range.max=order.length-1;range.value=order.length-1;
  range.oninput=()=>{const grid=order[range.value];view.src=grid.source;
    name.textContent='step '+Number(grid.step).toLocaleString('en')}}
"""
